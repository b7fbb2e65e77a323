"""Networks from configs and files: build a student, load a checkpoint, load the frozen teacher."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import RESNETS
from model.pspnet import PSPNet
from util import checkpoint, distributed
from util.config import Config
from util.data.lists import read_list, val_pairs
from util.errors import UserError
from util.keys import Data, Train

LAST_LAYERS = ("cls.4.", "aux.4.")  # which have a channel a class

log = logging.getLogger("network")

# Where a classification ResNet's stem lies in layer0; conv2 to bn3 exist in the deep stem only.
_STEM = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "conv3": "6", "bn3": "7"}


def build(train: Train, data: Data) -> PSPNet:
    """The network that TRAIN describes: all of TRAIN.weight in it, or TRAIN.pretrained in its backbone.

    A TRAIN.weight brings its own stem, recognised from its keys; with TRAIN.new_head its last layers
    are left out, so that it may have other classes. TRAIN.pretrained is not read when a checkpoint
    will replace it (TRAIN.resume), so that machines without a network can resume.
    """
    if not train.weight:
        if train.pretrained == "imagenet":  # a list that is missing must not cost a download
            read_list(data.train_list, "DATA.train_list", data.data_root)
            val_pairs(data)
        net = PSPNet(train.layers, data.classes, train.stem, train.dropout)
        if not checkpoint.to_resume(train.resume, Path(train.save_path)):
            load_pretrained(net, train.pretrained, train.layers, train.stem)
        return net
    content = checkpoint.read(train.weight)
    if other := _other_normalisation(content, data):
        log.warning(f"warning: {train.weight} {other}")
    state = checkpoint.network_state(train.weight, "student", content)
    net = PSPNet(train.layers, data.classes, _stem_of(state), train.dropout)
    if train.new_head:
        new = {key: value for key, value in net.state_dict().items() if key.startswith(LAST_LAYERS)}
        state |= new
    _load_strictly(net, state, train.weight, {LAST_LAYERS: "TRAIN.new_head True takes all but these layers"})
    if train.new_head:
        log.info(f"TRAIN.new_head: {', '.join(new)} begin anew; all else is from {train.weight}")
    return net


def load(
    path: str, layers: int, classes: int, part: str = "student", aux: bool = True, data: Data | None = None
) -> PSPNet:
    """The network in a checkpoint; its stem is recognised from the keys.

    layers, classes: what the config says, and the file must hold. part: "student" or "teacher", for
    a file that holds both. aux: take the auxiliary head, if there is one. data: what will feed it.
    Raises UserError naming what differs, in the network or from the normalisation of its training.
    """
    content = checkpoint.read(path)
    if data and (other := _other_normalisation(content, data)):
        raise UserError(f"{path} {other}; set them so")
    state = checkpoint.network_state(path, part, content)
    net = PSPNet(layers, classes, _stem_of(state), aux=aux and "aux.4.weight" in state)
    _load_strictly(net, state, path)
    return net


def _other_normalisation(content: Mapping[str, Any], data: Data) -> str | None:
    """What a checkpoint says of its training's DATA.mean and std, if the config says something else."""
    then = content.get("normalisation", {})
    if not then or (then["mean"], then["std"]) == (data.mean, data.std):
        return None
    return f"was trained with DATA.mean {then['mean']} and DATA.std {then['std']}, not {data.mean} and {data.std}"


def load_teacher(cfg: Config) -> PSPNet:
    """The frozen teacher of DISTILL, on the device and in DISTILL.precision (or else TRAIN.precision).

    Raises UserError, saying how to make one, when its checkpoint does not exist.
    """
    distill = cfg.distill
    if distill is None:
        raise UserError("the config has no DISTILL section; write DISTILL: {teacher_config: YAML of the teacher}")
    path = distill.teacher_path
    if not checkpoint.exists(path):
        there = ", ".join(other.name for other in checkpoint.numbered(Path(path).parent))
        raise UserError(
            f"teacher checkpoint {path} (DISTILL.teacher_path, or of DISTILL.teacher_config) does not exist; name one"
            f"{f' of {there}' if there else ''} there, or train one with train_50.py and this dataset's pspnet50 config"
        )
    teacher = load(path, distill.teacher_layers, cfg.data.classes, part="teacher", data=cfg.data)
    if teacher.aux is None and distill.weights.aux_mse > 0:
        raise UserError(f"{path}: the teacher has no auxiliary head; set DISTILL.weights.aux_mse to 0")
    return teacher.to(distributed.device()).freeze(distributed.precision(distill.precision or cfg.train.precision))


def load_pretrained(net: nn.Module, pretrained: str, layers: int, stem: str) -> None:
    """Fill layer0 .. layer4 of `net` by TRAIN.pretrained: imagenet, none, or a classification ResNet's file.

    The classifier (fc) is left out; every other key must match. Raises UserError for a file that does not fit.
    """
    if pretrained == "none":
        return
    if pretrained == "imagenet":
        if stem == "deep":
            raise UserError(
                "torchvision has no ImageNet weights for TRAIN.stem deep; set TRAIN.stem to plain, or "
                "TRAIN.pretrained to semseg's file for this depth (initmodel/resnet50_v2.pth) or to none"
            )
        state, source = imagenet_state(layers), "torchvision's ImageNet weights"
    else:
        state, source = checkpoint.tensors(checkpoint.read(pretrained), pretrained), pretrained
    if "ppm.features.0.1.weight" in state:  # a PSPNet's file: its backbone
        state = {key: value for key, value in state.items() if key.startswith("layer")}
    renamed = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head != "fc":
            renamed[f"layer0.{_STEM[head]}.{rest}" if head in _STEM else key] = value
    own = {k: v for k, v in net.state_dict().items() if k.startswith("layer")}
    checkpoint.check_match(renamed, own, source, f"a ResNet-{layers} with a {stem} stem")
    net.load_state_dict(renamed, strict=False)  # the heads' keys are not in it; check_match compared the others


def imagenet_state(layers: int) -> dict[str, Tensor]:
    """torchvision's ImageNet weights, downloaded once into torch's cache."""
    weights = RESNETS[layers].weights
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(
            f"ImageNet weights could not be downloaded ({str(error).splitlines()[0]}); fetch {weights.url} elsewhere "
            f"and place it in {folder}, or set TRAIN.pretrained to none or to a file"
        ) from None


def _stem_of(state: dict[str, Tensor]) -> str:
    return "deep" if "layer0.3.weight" in state else "plain"


def _load_strictly(net: PSPNet, state: dict[str, Tensor], path: str, hints: Mapping | None = None) -> None:
    """Load every key; only an auxiliary head that `net` does not have is left out."""
    if net.aux is None:
        state = {key: value for key, value in state.items() if not key.startswith("aux.")}
    checkpoint.check_match(state, net.state_dict(), path, f"a PSPNet-{net.layers} of {net.classes} classes", hints)
    net.load_state_dict(state)
