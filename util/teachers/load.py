"""The frozen teacher that DISTILL.teacher_path names: one of ours, another library's, or several as one."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.distill.classes import Averaged, Mapped
from model.pspnet import PSPNet
from util import config, distributed, network
from util.config import Config
from util.data.lists import read_names
from util.errors import UserError, first_line, out_of_memory, worker_death
from util.teachers import names, sources
from util.train.hints import check_hints

log = logging.getLogger("teacher")


def load(cfg: Config) -> PSPNet | Mapped | Averaged:
    """The teacher on the device, in DISTILL.precision (or else TRAIN.precision).

    Raises UserError for what cannot be read, for classes that do not fit, and for a term that asks for what the teacher
    does not have.
    """
    distill = cfg.distill
    if distill:
        check_hints(distill.hints, labelled=bool(cfg.data.train_list))  # before anything is downloaded
    if distill is None or (len(distill.teachers) == 1 and _is_ours(cfg, distill.teachers[0], distill.mappings[0])):
        return network.load_teacher(cfg)
    pairs = [*zip(distill.teachers, distill.mappings, strict=True)]
    members = [_Member(cfg, path, mapping) for path, mapping in pairs]
    if distill.weights.aux_mse > 0 and not (len(members) == 1 and members[0].has_aux):
        raise UserError(
            f"the teacher {', '.join(distill.teachers)} has no auxiliary scores of our classes (another library's "
            "network, mapped classes or several teachers); set DISTILL.weights.aux_mse to 0"
        )
    loaded = [member.load() for member in members]
    if len(loaded) == 1:
        return loaded[0]
    teacher = Averaged(loaded, distill.teacher_weights or [1.0] * len(loaded))
    if len(teacher.known.indices) < 2:
        raise UserError("DISTILL.teacher_path: the teachers have fewer than two of our classes in common")
    return teacher


def _is_ours(cfg: Config, path: str, mapping: Mapping | None) -> bool:
    """Whether a checkpoint of this project, with the classes of DATA in their order as far as is known."""
    if mapping is not None or sources.parse(path).kind != "checkpoint":
        return False
    own = _names_of_config(cfg, path)
    return own is None or own == read_names(cfg.data)


def _names_of_config(cfg: Config, path: str, mapped: bool = False) -> list[str] | None:
    """The classes of a checkpoint of ours: DISTILL.teacher_config's, where its run wrote it, or it is `mapped`."""
    other = cfg.distill.teacher_config
    if not other or not (mapped or Path(other).is_file()):
        return None
    other = config.load(other, ["DISTILL.teacher_path", "unused"])
    files = Path(other.test.model_path), Path(other.train.save_path, Path(path).name)
    its_own = Path(path).resolve() in [file.resolve() for file in files]
    return read_names(other.data) if mapped or its_own else None


class _Member:
    """One of the teachers: what is known of it before its weights are read or downloaded, and then it."""

    def __init__(self, cfg: Config, path: str, mapping: Mapping[str, Sequence[str]] | None):
        self.cfg, self.path, source = cfg, path, sources.parse(path)
        ours, self.description = read_names(cfg.data), None
        if source.kind == "checkpoint":
            self.names = _names_of_config(cfg, path, mapping is not None) or (None if mapping else ours)
            if self.names is None:
                raise UserError(
                    f"DISTILL.teacher_classes: {path} does not hold the names of its classes; name the config of its "
                    "training in DISTILL.teacher_config, whose DATA.names_path has them"
                )
        else:
            self.description = _describe(source)
            self.names = self.description.names
        self.groups = names.groups(ours, self.names, mapping, f"the teacher {path}")
        self.has_aux = source.kind == "checkpoint" and mapping is None
        unknown = [name for name, group in zip(ours, self.groups, strict=True) if not group]
        without = f"; it does not know {', '.join(unknown)}" if unknown else ""
        used, made = sum(map(len, self.groups)), len(ours) - len(unknown)
        log.info(f"teacher {path}: {used} of its {len(self.names)} classes make up {made} of our {len(ours)}{without}")

    def load(self) -> Mapped:
        """The frozen network on the device."""
        cfg, path, about = self.cfg, self.path, self.description
        dtype = distributed.precision(cfg.distill.precision or cfg.train.precision)
        if about is None:
            net = network.load_teacher(_for_one(cfg, path, len(self.names)))
            if net.cls is None:
                raise UserError(
                    f"{path} (DISTILL.teacher_path) is a backbone without classes: it teaches alone, unmapped"
                )
            return Mapped(net, self.groups, True, dtype)
        net = about.load(cfg.data, dtype).to(distributed.device())
        _probe(net, cfg, path)
        return Mapped(net, self.groups, about.raw, torch.float32)  # inside, the net computes in dtype


def _describe(source: sources.Source) -> Any:
    """The Description of another library's network. That library is imported where it is asked for."""
    if source.kind == "torchvision":
        from util.teachers import torchvision_models

        return torchvision_models.Description(source.name, source.file)
    from util.teachers import hf

    return hf.Description(source.name)


def _for_one(cfg: Config, path: str, classes: int) -> Config:
    """cfg with one teacher, of so many classes."""
    distill = cfg.distill.model_copy(update={"teacher_path": path})
    return cfg.model_copy(update={"distill": distill, "data": cfg.data.model_copy(update={"classes": classes})})


@torch.no_grad()
def _probe(net: nn.Module, cfg: Config, path: str) -> None:
    """One crop through a network of another library: that it takes one is seen before the data is read."""
    crop, resized = (cfg.train.train_h, cfg.train.train_w), ""
    try:
        resized = f", resized to {'x'.join(map(str, net.size(crop)))} as its own files say"
        scores = net(torch.zeros(1, 3, *crop, device=distributed.device())).logits
    except Exception as error:  # what another library's code raises is its own
        if worker_death(error) or out_of_memory(error):
            raise
        reason = first_line(error)
        raise UserError(
            f"DISTILL.teacher_path {path} fails on a crop of {crop[0]}x{crop[1]}{resized}: {reason:.200}"
        ) from None
    if scores.shape[1] != net.classes:
        raise UserError(f"{path} gives scores of {scores.shape[1]} classes, and names {net.classes}")
