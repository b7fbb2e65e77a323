"""The mathematics of the losses: golden values, and what must never change them."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.distill.features import mse
from model.distill.logits import kl
from model.labels import Labels, reserved_labels, sample_labels
from model.loss import cross_entropy
from util.data.batch import ToDevice

VOID = 255


def labels_of(label) -> Labels:
    return Labels.of(torch.as_tensor(label), VOID)


def two_class(logit: float) -> torch.Tensor:
    """Logits (1, 2, 1, 1) of which the first is `logit`, the second 0."""
    return torch.tensor([logit, 0.0]).view(1, 2, 1, 1)


ONE = labels_of([[[0]]])


def test_kl_golden():
    # teacher (3/4, 1/4), student (1/2, 1/2): 0.75 ln 1.5 + 0.25 ln 0.5
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl(two_class(0), two_class(math.log(3)), ONE, temperature=1.0).item() == pytest.approx(expected, rel=1e-6)
    # at T = 2 the logits that give the same probabilities are twice as large, and the factor is T^2
    assert kl(two_class(0), two_class(2 * math.log(3)), ONE, temperature=2.0).item() == pytest.approx(
        4 * expected, rel=1e-6
    )


def test_kl_direction():
    there = kl(two_class(0), two_class(2), ONE, temperature=1.0)
    assert there.item() == pytest.approx(0.32781, abs=1e-5)
    assert kl(two_class(2), two_class(0), ONE, temperature=1.0).item() == pytest.approx(0.43378, abs=1e-5)


def test_cross_entropy_golden():
    assert cross_entropy(two_class(0), ONE).item() == pytest.approx(math.log(2))
    assert cross_entropy(two_class(math.log(3)), ONE).item() == pytest.approx(math.log(4 / 3))


def test_mse_golden():
    student, teacher = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 2.0]).view(1, 2, 1, 1)
    assert mse(student, teacher, ONE).item() == pytest.approx(2.0)  # (4 + 0) / 2


LOSSES = {
    "kl": lambda s, t, labels: kl(s, t, labels, temperature=2.0),
    "mse": mse,
    "ce": lambda s, _, labels: cross_entropy(s, labels),
}
DISTILLATION = ["kl", "mse"]


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 5, 6, 7, generator=generator)
    label = torch.randint(0, 5, (2, 6, 7), generator=generator)
    label[:, :2] = VOID
    return student, teacher, label


@pytest.mark.parametrize("name", DISTILLATION)
def test_zero_at_identity(name, maps):
    assert LOSSES[name](maps[0], maps[0].clone(), labels_of(maps[2])).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_student_alone(name, maps):
    student, teacher = maps[0].requires_grad_(), maps[1].requires_grad_()
    LOSSES[name](student, teacher, labels_of(maps[2])).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_are_inert(name, maps):
    student, teacher, label = maps
    student.requires_grad_()
    before = LOSSES[name](student, teacher, labels_of(label))
    (gradient,) = torch.autograd.grad(before, student)
    assert gradient[:, :, :2].abs().max() == 0
    changed = student.detach().clone()
    changed[:, :, :2] = 1e4
    assert LOSSES[name](changed, teacher, labels_of(label)).item() == before.item()


@pytest.mark.parametrize("name", LOSSES)
def test_independent_of_batch_and_crop(name, maps):
    student, teacher, label = maps
    value = LOSSES[name](student, teacher, labels_of(label)).item()
    wide = LOSSES[name](student.repeat(3, 1, 2, 2), teacher.repeat(3, 1, 2, 2), labels_of(label.repeat(3, 2, 2)))
    assert wide.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_is_zero_not_nan(name, maps):
    student = maps[0].requires_grad_()
    value = LOSSES[name](student, maps[1], labels_of(torch.full_like(maps[2], VOID)))
    value.backward()
    assert value.item() == 0 and student.grad.abs().max() == 0


@given(size=st.integers(1, 8), zoom=st.sampled_from([1, 2, 4, 8]), width=st.integers(9, 70))
@settings(max_examples=60, deadline=None)
def test_labels_are_sampled_where_align_corners_puts_the_grid(size, zoom, width):
    height = 8 * size + 1
    label = torch.arange(height * width).view(1, height, width)
    picked = sample_labels(label, zoom)
    assert picked.shape == (1, size * zoom + 1, (width - 1) * zoom // 8 + 1)
    assert torch.equal(picked[:, :, 0], label[:, :: 8 // zoom, 0])
    assert picked[0, -1, -1] == label[0, -1, -1]
    assert set(picked.flatten().tolist()) <= set(label.flatten().tolist())


def test_cross_entropy_upsamples_to_the_labels():
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 0, :, 1] = 8.0  # grows from 0 to 8 from left to right
    label = torch.zeros(1, 9, 9, dtype=torch.long)
    expected = sum(math.log1p(math.exp(-x)) for x in range(9)) / 9
    assert cross_entropy(logits, labels_of(label)).item() == pytest.approx(expected, rel=1e-5)


def batches(label, ignore_label, mask="labelled", parts=1):
    data, train = SimpleNamespace(mean=[0.0] * 3, std=[1.0] * 3), SimpleNamespace(accumulate=parts)
    train.ignore_label = ignore_label
    to_device = ToDevice(data, train, mask, {1, 8}, torch.device("cpu"))
    return to_device((torch.zeros(*label.shape, 3, dtype=torch.uint8), label, None))


def test_shares_of_a_batch_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(2)
    logits, label = torch.randn(4, 5, 9, 9, generator=generator), torch.randint(0, 5, (4, 9, 9), generator=generator)
    label[0, :7] = VOID  # shares of very different weight: a mean of means would differ
    (batch,), shares = batches(label, VOID), batches(label, VOID, parts=2)
    whole = cross_entropy(logits, batch.labels[8])
    parts = [cross_entropy(part, share.labels[8]) for part, share in zip(logits.chunk(2), shares, strict=True)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)
    means = [cross_entropy(p, labels_of(y)).item() for p, y in zip(logits.chunk(2), label.chunk(2), strict=True)]
    assert sum(means) / 2 != pytest.approx(whole.item(), rel=1e-4)


@pytest.mark.parametrize("ignore", [255, 254, 11])
def test_what_counts_where(ignore):
    """Labelled, void, padding, unlabelled: supervised terms see the first, the others what DISTILL.mask says."""
    padding, unlabelled = reserved_labels(ignore)
    assert len({padding, unlabelled, ignore}) == 3 and min(padding, unlabelled) >= 253
    label = torch.tensor([[[3, ignore], [padding, unlabelled]]])
    (batch,) = batches(label, ignore)
    assert batch.labels[8].mask.tolist() == [[[True, False], [False, False]]] and batch.labels[8].count == 1
    assert batch.valid[8].mask.tolist() == [[[True, False], [False, True]]] and batch.valid[8].count == 2
    (everywhere,) = batches(label, ignore, "unpadded")
    assert everywhere.valid[8].mask.tolist() == [[[True, True], [False, True]]] and everywhere.labels[8].count == 1


def test_the_counts_of_a_batch_take_one_collective(monkeypatch):
    """Collectives are slow, and one in a getter would hang a script that reads it on one process alone."""
    asked = []

    def all_reduce(counts):
        asked.append(len(counts))
        return counts * 2  # the other process has the same labels

    monkeypatch.setattr("util.distributed.all_reduce", all_reduce)
    monkeypatch.setattr("util.distributed.world_size", lambda: 2)
    label = torch.zeros(4, 9, 9, dtype=torch.long)
    label[:3] = VOID
    parts = batches(label, VOID, parts=2)
    assert asked == [4]  # labels and valid, at two zooms
    for part in parts:
        assert part.labels[8].count == part.valid[8].count == 2 * 81 / (2 * 2) and part.labels[1].count == 2 * 4 / 4
    assert asked == [4]


def test_a_batch_without_labels_divides_by_no_zero():
    (batch,) = batches(torch.full((2, 9, 9), VOID), VOID)
    assert cross_entropy(torch.randn(2, 5, 9, 9), batch.labels[8]) == 0 < batch.labels[8].count
