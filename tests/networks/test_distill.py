"""Every distillation loss against a slow, obvious numpy version, and what must hold of each."""

import pytest
import reference_losses
import torch
from reference_losses import VOID
from torch import nn

from model.distill import adapters, features, logits, relations
from model.labels import Labels
from model.loss import masked_mean
from util.train.hints import LOSSES

N, C, H, W = 2, 5, 6, 7


def standardised_kl(s, t, labels):
    return logits.kl(logits.standardise(s), logits.standardise(t), labels)


PAIRS = {
    "kl": (logits.kl, reference_losses.kl),
    "dkd": (logits.dkd, reference_losses.dkd),
    "dist": (logits.dist, reference_losses.dist),
    "standardised kl": (standardised_kl, reference_losses.standardised_kl),
    "mse": (features.mse, reference_losses.mse),
    "nfd": (features.nfd, reference_losses.nfd),
    "at": (features.at, reference_losses.at),
    "cwd": (features.cwd, reference_losses.cwd),
    "attnfd": (features.attnfd, reference_losses.attnfd),
    "pairwise": (relations.pairwise, reference_losses.pairwise),
    "ifv": (relations.ifv, reference_losses.ifv),
    "cirkd": (relations.cirkd, reference_losses.cirkd),
}
every_loss = pytest.mark.parametrize("name", PAIRS)


@pytest.fixture(params=[0, 1], ids=["void rows", "scattered void"])
def maps(request):
    generator = torch.Generator().manual_seed(request.param)
    student, teacher = torch.randn(2, N, C, H, W, generator=generator, dtype=torch.float64)
    label = torch.randint(0, C, (N, H, W), generator=generator)
    if request.param:
        label[torch.rand(N, H, W, generator=generator) < 0.3] = VOID
    else:
        label[:, :2] = VOID
    return student, teacher, label


def labels_of(label) -> Labels:
    return Labels.of(label, VOID)


def test_every_function_of_the_table_is_here():
    assert {loss.function for loss in LOSSES.values()} <= {fast for fast, _ in PAIRS.values()}


@every_loss
def test_equals_the_slow_version(name, maps):
    fast, slow = PAIRS[name]
    student, teacher, label = maps
    assert fast(student, teacher, labels_of(label)).item() == pytest.approx(
        slow(*(m.numpy() for m in maps)), rel=1e-9, abs=1e-12
    )


@every_loss
def test_zero_when_student_equals_teacher(name, maps):
    value = PAIRS[name][0](maps[0], maps[0].clone(), labels_of(maps[2])).item()
    if name == "attnfd":  # the teacher's map is attended, the student's comes attended: stated in the docstring
        maps = features.parameter_free_cbam(maps[0]), maps[0], maps[2]
        assert value > 0
        value = features.attnfd(maps[0], maps[1], labels_of(maps[2])).item()
    assert value == pytest.approx(0, abs=1e-12)


@every_loss
def test_gradient_is_right_and_reaches_the_student_alone(name, maps):
    student, teacher, label = maps
    student, teacher = student[..., :3, :4].clone().requires_grad_(), teacher[..., :3, :4].clone().requires_grad_()
    labels = labels_of(label[:, 1:4, :4])
    assert torch.autograd.gradcheck(lambda s: PAIRS[name][0](s, teacher, labels), student)
    PAIRS[name][0](student, teacher, labels).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@every_loss
def test_masked_positions_are_inert(name, maps):
    student, teacher, label = maps
    student.requires_grad_()
    before = PAIRS[name][0](student, teacher, labels_of(label))
    (gradient,) = torch.autograd.grad(before, student)
    outside = (label == VOID).unsqueeze(1).expand_as(student)
    assert gradient[outside].abs().max() == 0
    changed = student.detach().masked_fill(outside, 1e3)
    theirs = teacher if name == "attnfd" else teacher.masked_fill(outside, -1e3)  # its pools see everything
    assert PAIRS[name][0](changed, theirs, labels_of(label)).item() == pytest.approx(before.item(), rel=1e-12)


@every_loss
def test_independent_of_batch_and_crop(name, maps):
    student, teacher, label = maps
    value = PAIRS[name][0](student, teacher, labels_of(label)).item()
    rows, columns = (2, 2) if name not in ("pairwise", "cirkd") else (2, 1)  # W is odd: patches must tile, too
    wide = (m.repeat(3, 1, rows, columns) for m in (student, teacher))
    assert PAIRS[name][0](*wide, labels_of(label.repeat(3, rows, columns))).item() == pytest.approx(value, rel=1e-9)


@every_loss
def test_bfloat16_agrees_within_its_precision(name, maps):
    single = [m.float() for m in maps[:2]]
    half = [m.bfloat16() for m in single]
    value = PAIRS[name][0](*single, labels_of(maps[2]))
    rounded = PAIRS[name][0](*half, labels_of(maps[2]))
    assert rounded.dtype == torch.float32  # computed in float32 from rounded maps
    assert rounded.item() == pytest.approx(value.item(), rel=0.05)


@every_loss
def test_nothing_valid_is_zero_not_nan(name, maps):
    student = maps[0].requires_grad_()
    value = PAIRS[name][0](student, maps[1], labels_of(torch.full_like(maps[2], VOID)))
    value.backward()
    assert value.item() == 0 and student.grad.abs().max() == 0


@every_loss
def test_one_empty_image_leaves_the_other_finite(name, maps):
    student, teacher, label = maps
    student.requires_grad_()
    label[0] = VOID
    value = PAIRS[name][0](student, teacher, labels_of(label))
    value.backward()
    assert value > 0 and student.grad.isfinite().all() and student.grad[0].abs().max() == 0


def test_kl_at_a_lower_temperature_and_dkd_agree_where_they_must(maps):
    """dkd with beta = 1 - p(target) is kl: with two classes nothing is left among the others."""
    student, teacher, label = maps[0][:, :2], maps[1][:, :2], maps[2].clamp(max=VOID)
    label = label.where(label == VOID, label % 2)
    a = logits.dkd(student, teacher, labels_of(label), temperature=1.5)
    assert a.item() == pytest.approx(logits.kl(student, teacher, labels_of(label), temperature=1.5).item(), rel=1e-9)


def test_standardise_removes_scale_and_shift(maps):
    moved = 7 * maps[0] + 3
    assert torch.allclose(logits.standardise(maps[0]), logits.standardise(moved), atol=1e-9)
    assert logits.standardise(torch.ones(1, 3, 1, 1)).abs().max() == 0


def test_dist_counts_a_class_that_the_teacher_gives_the_same_everywhere_as_0():
    """In float32, too, where rounding leaves such a class a tiny variance."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 21, 30, 30, generator=generator)
    teacher = torch.randn(1, 21, 1, 1, generator=generator).expand_as(student)
    labels = labels_of(torch.zeros(2, 30, 30, dtype=torch.long))
    assert logits.dist(student, teacher, labels, inter=0.0).item() == 0


def test_nfd_ignores_the_magnitude_of_features(maps):
    student, teacher, label = maps
    scale, shift = torch.rand(2, C, 1, 1, dtype=torch.float64) * 9 + 1
    value = features.nfd(student, teacher, labels_of(label)).item()
    moved = features.nfd(student, teacher * scale + shift, labels_of(label)).item()
    assert moved == pytest.approx(value, rel=1e-4)


ADAPTERS = {
    "conv1x1": adapters.conv1x1,
    "conv1x1 if channels differ": adapters.conv1x1_if_channels_differ,
    "masked generator": adapters.MaskedGenerator,
    "cbam": adapters.CBAM,
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_fit_the_teacher_and_learn(name):
    torch.manual_seed(0)
    adapter = ADAPTERS[name](3, C)
    x = torch.randn(N, 3, H, W, requires_grad=True)
    out = adapter(x)
    assert out.shape == (N, C, H, W)
    loss = features.mse(out, torch.randn(N, C, H, W), labels_of(torch.zeros(N, H, W)))
    loss.backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters() if p.dim() > 1)


def test_adapter_only_where_shapes_differ():
    assert isinstance(adapters.conv1x1_if_channels_differ(C, C), nn.Identity)
    assert isinstance(adapters.conv1x1(C, C), nn.Conv2d)


def test_generator_drops_the_share_it_says():
    torch.manual_seed(0)
    adapter = adapters.MaskedGenerator(1, 1, ratio=0.75)
    adapter.restore = nn.Identity()
    kept = adapter(torch.ones(1, 1, 100, 100)).mean().item()
    assert kept == pytest.approx(0.25, abs=0.02)


def test_pairwise_and_cirkd_hold_no_more_than_they_say():
    """At a 473x473 crop (60x60 positions): memory saved for the backward pass, beyond the maps themselves."""
    student = torch.randn(4, 8, 60, 60, requires_grad=True)
    labels = labels_of(torch.zeros(4, 60, 60, dtype=torch.long))
    for loss, floats in ((relations.pairwise, 4 * 900 * 900 * 4), (relations.cirkd, 900 * 900)):
        held = {}

        def keep(tensor, held=held):
            held[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(student, torch.randn(4, 8, 60, 60), labels)
        assert sum(held.values()) <= floats, (loss.__name__, sum(held.values()))


def test_masked_mean_is_what_all_share():
    values, labels = torch.tensor([[[1.0, 5.0]]]), labels_of(torch.tensor([[[0, VOID]]]))
    assert masked_mean(values, labels).item() == 1
