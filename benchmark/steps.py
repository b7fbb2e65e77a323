"""The training steps that step.py and growth.py time: the scripts' own, plain ones, and ours without one part."""

import argparse
import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F

from benchmark import measure, theirs
from model import conv, loss
from model.distill.adapters import StudentWithAdapters
from model.distill.features import mse
from model.distill.logits import kl
from model.labels import Labels, sample_labels
from model.loss import supervised_losses
from model.pspnet import PSPNet
from util import config, distributed
from util.config import Config
from util.train import engine
from util.train.schedule import Weights
from util.train.step import Losses, Stepper, optimizer
from util.train.teacher import Teacher

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"teacher": "train_50", "student": "train_18", "distillation": "train_50_18"}
DEPTHS = {"teacher": (50, None), "student": (18, None), "distillation": (18, 50)}
VOID = 255

Overrides = Mapping[str, object]


def batch(size: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed random batch as the loader gives it: (N, H, W, 3) and (N, H, W), uint8."""
    noise = torch.Generator().manual_seed(0)
    shape = (size.batch, size.crop, size.crop)
    image = torch.randint(0, 256, (*shape, 3), generator=noise, dtype=torch.uint8)
    return image, torch.randint(0, size.classes, shape, generator=noise, dtype=torch.uint8)


class Fit(NamedTuple):
    """What a script hands to the training loop."""

    cfg: Config
    net: PSPNet | StudentWithAdapters
    losses: Losses
    weights: Mapping[str, float]
    teacher: Teacher | None = None

    def stepper(self) -> Stepper:
        self.net.to(distributed.device(), memory_format=torch.channels_last)
        weights = Weights(self.weights, {}, self.cfg.train.epochs)
        return Stepper(
            self.cfg, self.net, optimizer(self.cfg, self.net), self.losses, weights, seed=0, per_epoch=1 << 10
        )


def script_fit(kind: str, precision: str, size: argparse.Namespace, folder: Path, more: Overrides) -> Fit:
    """The project's own script up to the training loop; more: config keys and values."""
    teacher = folder / "teacher.pth"
    if kind == "distillation" and not teacher.is_file():
        torch.save({"state_dict": PSPNet(50, size.classes).state_dict()}, teacher)
    overrides = {
        "DATA.classes": size.classes, "TRAIN.pretrained": "none",
        **({"DISTILL.hints": "[]"} if kind == "distillation" else {}),  # kl and aux_mse, as plain_step
        "TRAIN.precision": precision,
        "TRAIN.train_h": size.crop, "TRAIN.train_w": size.crop, "TRAIN.batch_size": size.batch, **more,
    }  # fmt: skip
    if kind == "distillation":
        overrides["DISTILL.teacher_path"] = teacher
    layers = SCRIPTS[kind].removeprefix("train_")
    pairs = [str(part) for item in overrides.items() for part in item]
    cfg = config.load(ROOT / f"config/voc2012/voc2012_pspnet{layers}.yaml", pairs)
    torch.manual_seed(0)
    with mock.patch.object(engine, "fit") as fit:
        importlib.import_module(SCRIPTS[kind]).main(cfg)
    return Fit(*fit.call_args.args)


def script_stepper(kind: str, precision: str, size: argparse.Namespace, folder: Path, more: Overrides) -> Stepper:
    """The loop's Stepper with the networks and losses of the project's own script."""
    return script_fit(kind, precision, size, folder, more).stepper()


def script_step(
    kind: str, precision: str, size: argparse.Namespace, folder: Path, more: Overrides = MappingProxyType({})
) -> Callable[[], None]:
    stepper, raw = script_stepper(kind, precision, size, folder, more), batch(size)
    return lambda: stepper.step((*raw, None), 1)


def normalised(size: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    image, label = batch(size)
    image = (image.permute(0, 3, 1, 2).float() - 116) / 57
    return image.contiguous().to(distributed.device()), label.long().to(distributed.device())


def plain_step(kind: str, size: argparse.Namespace) -> Callable[[], None]:
    """The same work without any of the measures for speed."""
    torch.manual_seed(0)
    layers, teacher_layers = DEPTHS[kind]
    net, teacher = PSPNet(layers, size.classes).to(distributed.device()).train(), None
    if teacher_layers:
        teacher = PSPNet(teacher_layers, size.classes).to(distributed.device()).eval().requires_grad_(False)
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    image, label = normalised(size)
    fine, coarse = Labels.of(label, VOID), Labels.of(sample_labels(label, 1), VOID)

    def step() -> None:
        out = net(image)
        total = sum(supervised_losses(out, fine).values())
        if teacher:
            target = teacher(image)
            total = total + kl(out.logits, target.logits, coarse) + mse(out.aux, target.aux, coarse)
        sgd.zero_grad()
        total.backward()
        sgd.step()

    return step


def full_size_cross_entropy(logits: torch.Tensor, labels: Labels) -> torch.Tensor:
    scores = F.interpolate(logits.float(), labels.label.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(scores, labels.label.where(labels.mask, -100), reduction="sum") / labels.count


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    with measure.default_malloc(), full_size(), nn_conv2d():
        yield


def full_size() -> contextlib.AbstractContextManager:
    return mock.patch.object(loss, "cross_entropy", full_size_cross_entropy)


def nn_conv2d() -> contextlib.AbstractContextManager:
    return mock.patch.object(conv, "CHUNK", 1 << 30)


def tuned() -> contextlib.AbstractContextManager:
    """cuDNN tries its algorithms and takes the fastest."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)


def unfolded_step(kind: str, size: argparse.Namespace, folder: Path) -> Callable[[], None]:
    def freeze(self: PSPNet, dtype: torch.dtype) -> PSPNet:
        return self.eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)

    with mock.patch.object(PSPNet, "freeze", freeze):
        return script_step(kind, "auto", size, folder)


def variants(kind: str, size: argparse.Namespace, folder: Path, names: list[str]) -> dict[str, measure.Variant]:
    ours = functools.cache(lambda: script_step(kind, "auto", size, folder))
    makers = {
        "ours": (ours, contextlib.nullcontext),
        "fp32": (lambda: script_step(kind, "fp32", size, folder), contextlib.nullcontext),
        "plain": (lambda: plain_step(kind, size), plainly),
        "original": (lambda: theirs.original_step(size.original, *normalised(size)), measure.default_malloc),
        "nn.Conv2d": (ours, nn_conv2d),
        "malloc": (ours, measure.default_malloc),
        "full-size CE": (ours, full_size),
        "tuned": (ours, tuned),
        "compile": (
            lambda: script_step(kind, "auto", size, folder, more={"TRAIN.compile": True}),
            contextlib.nullcontext,
        ),
        "unfolded": (lambda: unfolded_step(kind, size, folder), contextlib.nullcontext),
    }
    return {name: measure.Variant(makers[name][0](), makers[name][1]) for name in names}
