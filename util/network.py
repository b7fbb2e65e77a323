"""Networks from configs and files: build a student, load a checkpoint, load the frozen teacher."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.pspnet import PSPNet
from model.timm_backbone import STRIDES
from util import checkpoint, distributed
from util.config import Config
from util.data.lists import read_list, val_pairs
from util.errors import UserError
from util.keys import Data, Train
from util.pretrained import fill_backbone, load_pretrained, warn_of_normalisation

LAST_LAYERS = ("cls.4.", "aux.4.")  # which have a channel a class

log = logging.getLogger("network")


def make(layers: int | str, classes: int | None, stem: str = "plain", dropout: float = 0.1, aux: bool = True) -> PSPNet:
    """PSPNet(...), randomly initialised. Raises UserError where timm is not installed or has no such backbone."""
    try:
        net = PSPNet(layers, classes, stem, dropout, aux)
    except ModuleNotFoundError as error:
        raise UserError(f"{layers} needs {error.name}: pip install -r requirements-teachers.txt") from None
    except ValueError as error:
        raise UserError(f"{error} (TRAIN.backbone, DISTILL.teacher_backbone)") from None
    if isinstance(layers, str) and (strides := tuple(net.layer0.reductions)) != STRIDES:
        log.info(f"{layers}: its maps of strides {strides} are interpolated to {STRIDES}")
    return net


def build(train: Train, data: Data) -> PSPNet:
    """The network that TRAIN describes: all of TRAIN.weight in it, or TRAIN.pretrained in its backbone.

    A TRAIN.weight brings its own stem, recognised from its keys; with TRAIN.new_head its last layers
    are left out, so that it may have other classes. TRAIN.pretrained is not read when a checkpoint
    will replace it (TRAIN.resume), so that machines without a network can resume.
    """
    if not train.weight:
        if train.pretrained == "imagenet":  # a list that is missing must not cost a download
            read_list(*data.epoch_list, data.data_root, labelled=bool(data.train_list))
            val_pairs(data)
        net = make(train.architecture, data.classes, train.stem, train.dropout)
        if not checkpoint.to_resume(train.resume, Path(train.save_path)):
            load_pretrained(net, train.pretrained)
            if train.backbone and train.pretrained != "none":
                warn_of_normalisation(net, data.mean, data.std)
        return net
    content = checkpoint.read(train.weight)
    if other := _other_normalisation(content, data):
        log.warning(f"warning: {train.weight} {other}")
    _check_backbone(content, train.architecture, train.weight, "TRAIN.backbone")
    state = checkpoint.network_state(train.weight, "student", content)
    net = make(train.architecture, data.classes, _stem_of(state), train.dropout)
    if train.new_head:
        new = {key: value for key, value in net.state_dict().items() if key.startswith(LAST_LAYERS)}
        state |= new
    _load_strictly(net, state, train.weight, {LAST_LAYERS: "TRAIN.new_head True takes all but these layers"})
    if train.new_head:
        log.info(f"TRAIN.new_head: {', '.join(new)} begin anew; all else is from {train.weight}")
    return net


def load(
    path: str, layers: int | str, classes: int, part: str = "student", aux: bool = True, data: Data | None = None
) -> PSPNet:
    """The network in a checkpoint; its stem is recognised from the keys.

    layers (a depth, or timm/NAME), classes: what the config says, and the file must hold. part: "student" or
    "teacher", for a file that holds both; a teacher's file may hold a backbone alone. aux: take the auxiliary head, if
    there is one. data: what will feed it; a teacher of another normalisation converts its images. Raises UserError
    naming what differs, in the network or, of a student, from the normalisation of its training.
    """
    content = checkpoint.read(path)
    other = data and _other_normalisation(content, data)
    if other and part == "student":
        raise UserError(f"{path} {other}; set them so")
    _check_backbone(content, layers, path, "TRAIN.backbone" if part == "student" else "DISTILL.teacher_backbone")
    state = checkpoint.network_state(path, part, content)
    if part == "teacher" and not any(key.startswith("cls.") for key in state):
        net = make(layers, None, _stem_of(state))
        fill_backbone(net, state, path)
    else:
        net = make(layers, classes, _stem_of(state), aux=aux and "aux.4.weight" in state)
        _load_strictly(net, state, path)
    if other:
        log.info(f"teacher {path} {other}: it sees images as it was trained")
        net.expect((data.mean, data.std), (content["normalisation"]["mean"], content["normalisation"]["std"]))
    return net


def _check_backbone(content: Mapping[str, Any], layers: int | str, path: str, key: str) -> None:
    """Raise UserError when a checkpoint says that it has another backbone, and one of the two is timm's."""
    then = content.get("layers", layers)
    if then != layers and (isinstance(then, str) or isinstance(layers, str)):
        names = [name if isinstance(name, str) else f"a ResNet-{name}" for name in (then, layers)]
        setting = f"to {then}" if isinstance(then, str) else "to nothing"
        raise UserError(f"{path} holds a PSPNet over {names[0]}, the config asks for {names[1]}; set {key} {setting}")


def _other_normalisation(content: Mapping[str, Any], data: Data) -> str | None:
    """What a checkpoint says of its training's DATA.mean and std, if the config says something else."""
    then = content.get("normalisation")
    if not isinstance(then, dict) or not {"mean", "std"} <= then.keys():  # a file from elsewhere
        return None
    if (then["mean"], then["std"]) == (data.mean, data.std):
        return None
    return f"was trained with DATA.mean {then['mean']} and DATA.std {then['std']}, not {data.mean} and {data.std}"


def load_teacher(cfg: Config) -> PSPNet:
    """The frozen teacher of DISTILL, on the device and in DISTILL.precision (or else TRAIN.precision).

    Raises UserError, saying how to make one, when its checkpoint does not exist.
    """
    distill = cfg.distill
    if distill is None:
        raise UserError("the config has no DISTILL section; write DISTILL: {teacher_config: YAML of the teacher}")
    path = distill.teachers[0]
    if path == "imagenet":
        teacher = make(distill.teacher_architecture, None)
        load_pretrained(teacher, path, "DISTILL.teacher_path")
    elif not checkpoint.exists(path):
        there = ", ".join(other.name for other in checkpoint.numbered(Path(path).parent))
        raise UserError(
            f"teacher checkpoint {path} does not exist (DISTILL.teacher_path, or save_path and epochs in the file of "
            f"DISTILL.teacher_config); name one{f' of {there}' if there else ''} in DISTILL.teacher_path, or train one "
            "with train_50.py and this dataset's pspnet50 config"
        )
    else:
        teacher = load(path, distill.teacher_architecture, cfg.data.classes, part="teacher", data=cfg.data)
    if teacher.cls is None:
        _check_features(teacher, cfg)
    elif teacher.aux is None and distill.weights.aux_mse > 0:
        raise UserError(f"{path}: the teacher has no auxiliary head; set DISTILL.weights.aux_mse to 0")
    return teacher.to(distributed.device()).freeze(distributed.precision(distill.precision or cfg.train.precision))


def _check_features(teacher: PSPNet, cfg: Config) -> None:
    """Ready a backbone that teaches without heads. Raises UserError when the config asks it for more than features."""
    distill = cfg.distill
    if distill.weights.kl or distill.weights.aux_mse or not distill.hints:
        raise UserError(
            f"{distill.teacher_path} (DISTILL.teacher_path) is a backbone without heads: set DISTILL.weights.kl and "
            "aux_mse to 0, and name losses on layer1 to layer4 in DISTILL.hints"
        )
    if isinstance(teacher.layers, str):
        teacher.expect((cfg.data.mean, cfg.data.std), (teacher.layer0.mean, teacher.layer0.std))


def _stem_of(state: dict[str, Tensor]) -> str:
    return "deep" if {"layer0.3.weight", "conv3.weight"} & state.keys() else "plain"


def _load_strictly(net: PSPNet, state: dict[str, Tensor], path: str, hints: Mapping | None = None) -> None:
    """Load every key; only an auxiliary head that `net` does not have is left out."""
    if net.aux is None:
        state = {key: value for key, value in state.items() if not key.startswith("aux.")}
    checkpoint.check_match(state, net.state_dict(), path, f"a PSPNet-{net.layers} of {net.classes} classes", hints)
    net.load_state_dict(state)
