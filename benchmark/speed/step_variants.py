"""The steps that the scripts of this folder time: the training scripts' own, and the same work written plainly."""

import argparse
import contextlib
import functools
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from benchmark.speed.measure import Work
from model.distill.features import mse
from model.distill.logits import kl
from model.labels import Labels, sample_labels
from model.pspnet import Output, PSPNet
from tool.export.graph import Concatenated
from util import config, distributed
from util.data.batch import ToDevice
from util.errors import UserError
from util.train import engine
from util.train.step import Stepper, Weights, build_optimizer

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"teacher": "50", "student": "18", "distillation": "50_18"}
RECIPES = {path.stem: path for path in sorted((ROOT / "config/camvid/distill").glob("*.yaml"))}
WAYS = {
    "ours": {},
    "fp32": {"TRAIN.precision": "fp32"},
    "tf32": {"TRAIN.precision": "tf32"},
    "bf16-weights": {"TRAIN.precision": "bf16"},  # beside its change: without autocast the images stay float32
}
VOID = 255


def batch(size: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed random batch as the loader gives it: (N, H, W, 3) and (N, H, W), uint8."""
    noise = torch.Generator().manual_seed(0)
    shape = (size.batch, size.crop, size.crop)
    image = torch.randint(0, 256, (*shape, 3), generator=noise, dtype=torch.uint8)
    return image, torch.randint(0, size.classes, shape, generator=noise, dtype=torch.uint8)


def load(script: str, keys: Mapping[str, object]) -> config.Config:
    pairs = [str(part) for item in keys.items() for part in item]
    return config.load(ROOT / f"config/voc2012/voc2012_pspnet{script}.yaml", pairs)


class Step:
    """A step of the training loop with the script's network and losses. more: config keys; changes: of CHANGES."""

    def __init__(self, kind: str, size: argparse.Namespace, folder: Path, more: Mapping[str, object], changes=()):
        keys = {"DATA.classes": size.classes, "TRAIN.pretrained": "none", "TRAIN.batch_size": size.batch}
        keys |= {"TRAIN.train_h": size.crop, "TRAIN.train_w": size.crop}
        torch.manual_seed(0)
        if kind == "distillation":
            keys |= {"DISTILL.teacher_path": folder / "teacher.pth", "DISTILL.hints": "[]"}  # as plain_step
            torch.save({"state_dict": PSPNet(50, size.classes).state_dict()}, folder / "teacher.pth")
        cfg = load(SCRIPTS[kind], keys | dict(more))
        with mock.patch.object(engine, "fit") as fit:
            importlib.import_module(f"train_{SCRIPTS[kind]}").main(cfg)
        _, net, losses, weights, *teacher = fit.call_args.args
        net.to(distributed.device())
        weights, optimizer = Weights(weights, {}, cfg.train.epochs), build_optimizer(cfg.train, net)
        self.stepper = Stepper(cfg.train, net, optimizer, losses, weights, 1 << 10, size.classes)
        self.stepper.model.train()
        self.teacher = teacher[0] if teacher else None
        zooms = {1, 2, cfg.train.zoom_factor}
        self.to_device = ToDevice(cfg.data, cfg.train, "labelled", zooms, distributed.device())
        raw = (tensor.pin_memory() if torch.cuda.is_available() else tensor for tensor in batch(size))  # as the loader
        self.raw, self.around = (*raw, None), contextlib.nullcontext()
        for change in changes:
            change(self)

    def __call__(self, raw: tuple | None = None) -> None:
        """raw: a batch of the loader's, instead of the same random one each time."""
        distributed.allow_tf32(self.stepper.train.precision)
        torch.compiler.cudagraph_mark_step_begin()
        with self.around:
            self.stepper.step(self.to_device(raw or self.raw), 1, dropout_seed=0)


def compiled(step: Step, mode: str | None = None, student: bool = True) -> None:
    """torch.compile as TRAIN.compile has it, but a failure is one."""
    for part in [step.stepper] * student + [step.teacher] * (step.teacher is not None):
        part.forward = torch.compile(part.forward, dynamic=False, mode=mode)


def beside(step: Step) -> None:
    """The teacher's forward on a stream of its own, beside the student's."""
    stream, teacher, student = torch.cuda.Stream(), step.teacher.forward, step.stepper.forward

    def start(image: torch.Tensor) -> Output:
        stream.wait_stream(torch.cuda.current_stream())
        image.record_stream(stream)
        with torch.cuda.stream(stream):
            return teacher(image)

    def join(image: torch.Tensor) -> Output:
        output = student(image)
        torch.cuda.current_stream().wait_stream(stream)
        return output

    step.teacher.forward, step.stepper.forward = start, join


def concatenated(step: Step) -> None:
    """The pyramid's maps enlarged and concatenated before the head's convolution, as PSPNet is written elsewhere."""
    for net in [step.stepper.model, step.teacher.net] if step.teacher else [step.stepper.model]:
        net.cls[0] = Concatenated(net.cls[0])


def foreach(step: Step) -> None:
    for group in step.stepper.optimizer.param_groups:
        group["fused"], group["foreach"] = False, True


def bfloat16_weights(step: Step) -> None:
    """Convolutions in bfloat16 alone: no training, which needs float32, but the most that kept copies could save."""
    for module in step.stepper.model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)


def channels_last(step: Step) -> None:
    """The layout of bfloat16 and of GPUs, in float32 on a CPU too."""
    step.stepper.layout = torch.channels_last
    step.stepper.model.to(memory_format=torch.channels_last)


def compiled_loss(step: Step) -> None:
    """Cross entropy at full size, left to the compiler, instead of blocks of rows."""

    def whole(logits: torch.Tensor, labels: Labels, weights: None) -> torch.Tensor:
        scores = F.interpolate(logits.float(), labels.label.shape[1:], mode="bilinear", align_corners=True)
        return F.cross_entropy(scores, labels.label.where(labels.mask, -100), reduction="sum") / labels.count

    step.around = mock.patch("model.loss.cross_entropy", torch.compile(whole, dynamic=False))


CHANGES = {
    "compile": compiled,
    "reduce-overhead": functools.partial(compiled, mode="reduce-overhead"),  # CUDA graphs
    "max-autotune": functools.partial(compiled, mode="max-autotune-no-cudagraphs"),
    "teacher-compile": functools.partial(compiled, student=False),
    "stream": beside,
    "concatenated": concatenated,
    "foreach": foreach,
    "channels_last": channels_last,
    "bf16-weights": bfloat16_weights,
    "compiled-loss": compiled_loss,
}


def plain_step(kind: str, size: argparse.Namespace) -> Work:
    """The same work in float32, contiguous, with cross entropy at full size."""
    torch.manual_seed(0)
    net = PSPNet(50 if kind == "teacher" else 18, size.classes).to(distributed.device()).train()
    teacher = PSPNet(50, size.classes).to(distributed.device()).eval() if kind == "distillation" else None
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    image, label = (tensor.to(distributed.device()) for tensor in batch(size))
    image, label = ((image.permute(0, 3, 1, 2).float() - 116) / 57).contiguous(), label.long()
    coarse = Labels.of(sample_labels(label, 1), VOID)

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        scores = F.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=True)
        return F.cross_entropy(scores, label, ignore_index=VOID)

    def step() -> None:
        distributed.allow_tf32("tf32")  # PyTorch's default for convolutions
        out = net(image)
        total = cross_entropy(out.logits) + cross_entropy(out.aux)
        if teacher:
            with torch.no_grad():
                target = teacher(image)
            total = total + kl(out.logits, target.logits, coarse) + mse(out.aux, target.aux, coarse)
        sgd.zero_grad()
        total.backward()
        sgd.step()

    return step


def recipe(name: str) -> dict[str, object]:
    """The keys of config/camvid/distill/NAME.yaml that say which losses there are."""
    distill = config.load(RECIPES[name]).distill
    hints = json.dumps([hint.model_dump(exclude_none=True) for hint in distill.hints])
    weights = {f"DISTILL.weights.{term}": weight for term, weight in distill.weights.model_dump().items()}
    return {"DISTILL.hints": hints, "DISTILL.standardise": distill.standardise, **weights}


def make(way: str, kind: str, size: argparse.Namespace, folder: Path) -> Work:
    """A step of `kind`; way: plain, or some of WAYS, CHANGES and recipes' names, joined by +. Raises UserError for
    others."""
    if way == "plain":
        return plain_step(kind, size)
    names = way.split("+")
    for name in names:
        if name not in {*WAYS, *CHANGES, *RECIPES}:
            known = ", ".join(dict.fromkeys(["ours", "plain", *WAYS, *CHANGES, *RECIPES]))
            raise UserError(f"there is no way {name}; take some of {known}, joined by +")
    keys = [WAYS[name] for name in names if name in WAYS] + [recipe(name) for name in names if name in RECIPES]
    more = {key: value for part in keys for key, value in part.items()}
    return Step(kind, size, folder, more, [CHANGES[name] for name in names if name in CHANGES])
