"""The steps that step.py and losses.py time: the scripts' own, and the same work written
plainly."""

import argparse
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

from benchmark.speed.measure import Work
from model.distill.features import mse
from model.distill.logits import kl
from model.labels import Labels, sample_labels
from model.pspnet import PSPNet
from util import config, distributed
from util.data.batch import ToDevice
from util.errors import UserError
from util.train import engine
from util.train.step import Stepper, Weights, build_optimizer

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"teacher": "50", "student": "18", "distillation": "50_18"}
RECIPES = {path.stem: path for path in sorted((ROOT / "config/camvid/distill").glob("*.yaml"))}
WAYS = {"ours": {}, "fp32": {"TRAIN.precision": "fp32"}, "compile": {"TRAIN.compile": True}}
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


def script_step(kind: str, size: argparse.Namespace, folder: Path, more: Mapping[str, object]) -> Work:
    """A step of the training loop with the script's network and losses; more: config keys."""
    keys = {"DATA.classes": size.classes, "TRAIN.pretrained": "none", "TRAIN.batch_size": size.batch}
    keys |= {"TRAIN.train_h": size.crop, "TRAIN.train_w": size.crop}
    if kind == "distillation":
        keys |= {"DISTILL.teacher_path": folder / "teacher.pth", "DISTILL.hints": "[]"}  # as plain_step
        torch.save({"state_dict": PSPNet(50, size.classes).state_dict()}, folder / "teacher.pth")
    cfg = load(SCRIPTS[kind], keys | dict(more))
    torch.manual_seed(0)
    with mock.patch.object(engine, "fit") as fit:
        importlib.import_module(f"train_{SCRIPTS[kind]}").main(cfg)
    _, net, losses, weights, *_ = fit.call_args.args
    net.to(distributed.device(), memory_format=torch.channels_last)
    weights, optimizer = Weights(weights, {}, cfg.train.epochs), build_optimizer(cfg.train, net)
    stepper = Stepper(cfg.train, net, optimizer, losses, weights, 1 << 10, size.classes)
    stepper.model.train()
    to_device = ToDevice(cfg.data, cfg.train, "labelled", {1, 2, cfg.train.zoom_factor}, distributed.device())
    raw = (*batch(size), None)
    return lambda: stepper.step(to_device(raw), 1, dropout_seed=0)


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
    """A step of `kind`; way: plain, one of WAYS, or a recipe's name. Raises UserError for
    others."""
    if way == "plain":
        return plain_step(kind, size)
    if way not in {*WAYS, *RECIPES}:
        raise UserError(f"there is no way {way}; take one of plain, {', '.join([*WAYS, *RECIPES])}")
    return script_step(kind, size, folder, WAYS[way] if way in WAYS else recipe(way))
