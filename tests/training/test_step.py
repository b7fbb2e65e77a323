"""One optimizer step against closed forms, with a network of two convolutions."""

import numpy as np
import pytest
import torch
from conftest import CLASSES
from torch import nn

from model.labels import reserved_labels
from model.loss import cross_entropy
from model.pspnet import Output
from util import distributed
from util.data.batch import ToDevice
from util.data.loader import ResumableBatchSampler, TrainData
from util.evaluate.metric import Scores
from util.train import engine
from util.train.step import Stepper, Weights, build_optimizer

PER_EPOCH = 5


class TwoConvs(nn.Module):
    """Stride 8, a backbone of one convolution and a head of another; no BatchNorm, whose statistics a split changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer3, self.head = nn.Conv2d(3, 6, 9, stride=8, padding=4), nn.Conv2d(6, CLASSES, 1)

    def forward(self, image):
        return Output(self.head(self.layer3(image).relu()), None, {})

    def parameter_groups(self):
        return list(self.layer3.parameters()), list(self.head.parameters())


def losses(network, batch):
    logits = network(batch.image).logits
    return logits, {"ce": cross_entropy(logits, batch.labels[1])}


@pytest.fixture
def stepper(tiny):
    """stepper(*overrides, losses=...) -> a Stepper of TwoConvs, and the batches for it from (image, label)."""

    def make(*overrides, losses=losses):
        cfg, net = tiny.load(*overrides), TwoConvs()
        optimizer = build_optimizer(cfg.train, net)
        weights = Weights({"ce": 1.0}, {}, cfg.train.epochs)
        to_device = ToDevice(cfg.data, cfg.train, "labelled", {1, 2, 8}, distributed.device())
        return Stepper(cfg.train, net, optimizer, losses, weights, PER_EPOCH, CLASSES), to_device

    return make


def batch(void: int = 255):
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.integers(0, 256, (4, 17, 17, 3), np.uint8))
    label = torch.from_numpy(random.integers(0, CLASSES, (4, 17, 17), np.uint8))
    label[0, :, :9] = void  # the parts of a split batch have different numbers of valid pixels
    label[3] = reserved_labels(void)[1]  # an unlabelled image
    return image, label, None


def test_accumulated_parts_give_the_update_of_the_whole_batch(stepper):
    updated = []
    for parts in ("1", "2", "4"):
        step, to_device = stepper("TRAIN.accumulate", parts)
        step.step(to_device(batch()), 0, dropout_seed=0)
        assert len(to_device(batch())) == int(parts)
        updated.append([p.detach() for p in step.model.parameters()])
        assert step.metrics.means("here")["ce"] == pytest.approx(step.metrics.means("here")["loss"])
    for other in updated[1:]:
        for a, b in zip(updated[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    moved = [(a - b).abs().max() for a, b in zip(updated[0], TwoConvs().parameters(), strict=True)]
    assert min(moved) > 1e-4  # far above the tolerance: a wrong factor is seen


@pytest.mark.parametrize(("power", "factor"), [("0.9", "10.0"), ("2.0", "3.0")])
def test_learning_rates_follow_the_poly_schedule(stepper, power, factor):
    keys = ["TRAIN.base_lr", "0.02", "TRAIN.power", power, "TRAIN.head_lr_factor", factor, "TRAIN.epochs", "4"]
    step, to_device = stepper(*keys)
    total = 4 * PER_EPOCH
    for done in (0, total // 2, total - 1):
        step.step(to_device(batch()), done, dropout_seed=0)
        expected = 0.02 * (1 - done / total) ** float(power)
        backbone, head = (group["lr"] for group in step.optimizer.param_groups)
        assert (backbone, head) == pytest.approx((expected, expected * float(factor)))
        assert step.metrics.lr == pytest.approx(expected)


def test_weight_decay_shrinks_weights_without_a_gradient(stepper):
    def constant(network, batch):
        logits = network(batch.image).logits
        return logits, {"ce": 0 * logits.sum()}

    step, to_device = stepper("TRAIN.base_lr", "0.5", "TRAIN.weight_decay", "0.1", losses=constant)
    step.step(to_device(batch()), 0, dropout_seed=0)
    lr = {id(p): group["lr"] for group in step.optimizer.param_groups for p in group["params"]}
    for before, after in zip(TwoConvs().parameters(), step.model.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before.detach() * (1 - lr[id(after)] * 0.1))


def test_adamw_takes_its_published_first_step(stepper):
    """Algorithm 2 of arXiv 1711.05101: decay by lr * weight_decay, then lr against the sign of the gradient."""
    keys = ["TRAIN.optimizer", "adamw", "TRAIN.base_lr", "0.01", "TRAIN.weight_decay", "0.1", "TRAIN.momentum", "0.8"]
    step, to_device = stepper(*keys)
    step.step(to_device(batch()), 0, dropout_seed=0)
    assert {group["betas"] for group in step.optimizer.param_groups} == {(0.8, 0.999)}
    lr = {id(p): group["lr"] for group in step.optimizer.param_groups for p in group["params"]}
    for before, after in zip(TwoConvs().parameters(), step.model.parameters(), strict=True):
        gradient, rate = after.grad, lr[id(after)]
        expected = before.detach() * (1 - rate * 0.1) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after.detach(), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_momenta_of_another_layout_give_the_same_step(tiny, stepper, layout):
    """A checkpoint of bfloat16 holds channels-last momenta, and one of float32 on a CPU plain ones."""
    cfg, net = tiny.load("TRAIN.precision", "fp32"), TwoConvs()
    optimizer, to_device = build_optimizer(cfg.train, net), stepper()[1]
    torch.manual_seed(1)
    expected = []
    for parameter in net.parameters():
        momentum = torch.randn(parameter.shape)
        stored = momentum.clone(memory_format=layout if momentum.ndim == 4 else torch.preserve_format)
        optimizer.state[parameter] = {"momentum_buffer": stored}
        expected.append((parameter, parameter.detach().clone(), momentum))
    step = Stepper(cfg.train, net, optimizer, losses, Weights({"ce": 1.0}, {}, cfg.train.epochs), PER_EPOCH, CLASSES)
    step.step(to_device(batch()), 0, dropout_seed=0)
    rules = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for parameter, before, momentum in expected:
        rate, decay = rules[id(parameter)]
        update = cfg.train.momentum * momentum + parameter.grad + decay * before
        torch.testing.assert_close(parameter.detach(), before - rate * update)


def test_a_perfect_predictor_has_a_train_miou_of_1(stepper):
    def perfect(network, batch):
        logits = network(batch.image).logits
        truth = nn.functional.one_hot(batch.labels[1].label.clamp(max=CLASSES - 1), CLASSES).permute(0, 3, 1, 2)
        return truth.float(), {"ce": 0 * logits.sum()}

    step, to_device = stepper(losses=perfect)
    step.step(to_device(batch()), 0, dropout_seed=0)
    scores = Scores.of(step.metrics.matrix)
    assert scores.mIoU == 1 and step.metrics.matrix.sum() == 3 * 3 * 2 + 3  # grid points with a class


def test_two_ranks_drop_different_channels(monkeypatch):
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        seeds.append(engine.dropout_seeds(seed=3, epoch=2, steps=8))
    assert not set(seeds[0]) & set(seeds[1])
    assert seeds[1] == engine.dropout_seeds(seed=3, epoch=2, steps=8)  # a resumed epoch draws the same
    assert not set(seeds[1]) & set(engine.dropout_seeds(seed=3, epoch=3, steps=8))


def test_every_accumulated_part_has_its_share_of_unlabelled_images(tiny, tmp_path):
    (tmp_path / "more.txt").write_text("".join(f"val{i}.jpg\n" for i in range(3)))
    keys = ["TRAIN.batch_size", "4", "TRAIN.unlabelled_per_batch", "2", "TRAIN.accumulate", "2"]
    cfg = tiny.load(*keys, "DATA.unlabelled_list", str(tmp_path / "more.txt"), "DISTILL.teacher_path", "t.pth")
    data = TrainData(cfg.data, cfg.train, 0)
    for step in ResumableBatchSampler(data):
        for part in (step[:3], step[3:]):
            assert [index >= data.labelled for _, index in part] == [False, False, True]
