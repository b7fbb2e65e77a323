"""Resuming: progress, checkpoints, and settings that must not change."""

import hashlib
import logging
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.distill.adapters import StudentWithAdapters
from model.pspnet import PSPNet
from util import checkpoint, distributed, seeds
from util.config import Config, defaults
from util.data.lists import read_text
from util.errors import UserError, first_line
from util.teachers import sources

# Keys that do not change what is learned. The training lists may move: their content is compared.
MAY_CHANGE_ON_RESUME = {
    "DATA": {"data_root", "train_list", "unlabelled_list", "val_list", "names_path", "colors_path", "video_block"},
    "TRAIN": {"workers", "batch_size_val", "print_freq", "save_freq", "keep", "save_path", "weight", "new_head"}
    | {"pretrained", "resume", "evaluate", "patience", "gradient_shares", "pictures", "compile"},
    "DISTILL": {"check_images", "cache", "teacher_path", "teacher_config"},
}

AS_WEIGHT = "make it TRAIN.weight of a run with another TRAIN.save_path, and TRAIN.resume auto"

log = logging.getLogger("resume")


class Progress:
    """How far a run is, and what its checkpoints hold beside that. Only rank 0 writes."""

    saved = ("step", "best", "best_epoch", "seed", "partial", "settings", "validation", "images")

    def __init__(self, cfg: Config, model: PSPNet | StudentWithAdapters, optimizer: torch.optim.Optimizer):
        self.train, self.folder, self.optimizer = cfg.train, Path(cfg.train.save_path), optimizer
        self.modules: dict[str, nn.Module] = {"state_dict": model}  # what testing loads is the network alone
        if isinstance(model, StudentWithAdapters):
            self.modules = {"state_dict": model.net, "adapters": model.adapters}
        self.step, self.best, self.best_epoch, self.seed = 0, -1.0, 0, seeds.of_run(cfg.train.manual_seed)
        self.partial: dict[str, Any] | None = None  # metrics of an epoch whose line is not written yet
        self.settings = _settings(cfg)
        self.list_content = f"content of {cfg.data.epoch_list[1]}"  # among the settings
        lines = read_text(*cfg.data.epoch_list)
        self.images = [zlib.crc32(" ".join(line.split()).encode()) for line in lines if line.strip()]
        self.layers = self.modules["state_dict"].layers  # the backbone: testing builds the same
        self.normalisation = {"mean": cfg.data.mean, "std": cfg.data.std}  # testing must use the same
        val = cfg.data.val_list and _digest(cfg.data.val_list, "DATA.val_list")
        self.validation = {"base_size": cfg.test.base_size, "val_list": val}

    @property
    def epoch(self) -> int:
        return self.step // self.settings["steps an epoch"]

    def exhausted(self, epoch: int) -> bool:
        """Whether val mIoU has not risen for TRAIN.patience epochs, up to `epoch`."""
        patience = self.train.patience
        return bool(patience) and epoch - self.best_epoch >= patience

    def save(self, name: str) -> None:
        """Write a checkpoint; one of a whole epoch replaces what a signal left, and older ones beyond TRAIN.keep."""
        if not distributed.is_main():
            return
        content = {key: getattr(self, key) for key in self.saved}
        content |= {"normalisation": self.normalisation, "layers": self.layers, "epoch": self.epoch}
        content["processes"] = distributed.world_size()
        content |= {key: module.state_dict() for key, module in self.modules.items()}
        content["optimizer"] = self.optimizer.state_dict()
        # The last step may have spoilt the weights with a loss that was finite.
        if bad := [name for key in self.modules for name in checkpoint.not_finite(content[key])]:
            raise UserError(
                f"not finite after step {self.step}: {', '.join(bad[:3])}; {self.folder / name} was not written; lower "
                "TRAIN.base_lr, or set TRAIN.precision to fp32, and start again in another TRAIN.save_path"
            )
        checkpoint.save(content, self.folder / name)
        if name.startswith("train_epoch_"):
            (self.folder / "interrupted.pth").unlink(missing_ok=True)
            checkpoint.prune(self.folder, self.train.keep, self.epoch)

    def load(self, content: dict[str, Any], path: Path) -> None:
        """Take everything from a checkpoint. Raises UserError for one of another network or of other settings."""
        if missing := [key for key in ("step", "settings", "optimizer", *self.modules) if key not in content]:
            raise UserError(f"{path} cannot be resumed: it has no {missing[0]}; {AS_WEIGHT}")
        # A key that one of them does not know has its default there.
        then, now = (defaults() | settings for settings in (_that_count(content["settings"]), self.settings))
        changed = {k: f"{k} (was {then.get(k)}, is {now.get(k)})" for k in {**now, **then} if then.get(k) != now.get(k)}
        if self.list_content in changed and set(self.images) < set(content.get("images", ())):
            count, where = len(content["images"]) - len(self.images), self.list_content.removeprefix("content of ")
            log.warning(f"warning: {count} images are no longer in {where}")
            del changed[self.list_content]
        if changed:
            raise UserError(
                f"{path} was trained with other settings: {', '.join(changed.values())}; take them back, or start anew "
                "with another TRAIN.save_path and TRAIN.resume auto (from these weights with this file as TRAIN.weight)"
            )
        for key, module in self.modules.items():
            state = checkpoint.tensors({"state_dict": content[key]}, path) if content[key] else {}
            checkpoint.check_match(state, module.state_dict(), path, f"this run's network ({key})")
            module.load_state_dict(state)
        self.optimizer.load_state_dict(content["optimizer"])
        own, images, digest = self.validation, self.images, self.settings[self.list_content]
        for key in self.saved:
            setattr(self, key, content.get(key, getattr(self, key)))
        self.images, self.settings = images, self.settings | {self.list_content: digest}
        if self.validation != own:
            if self.best >= 0:
                log.warning("warning: val_list or TEST.base_size has changed: the best val mIoU starts anew")
            self.validation, self.best, self.best_epoch = own, -1.0, self.epoch
        if self.best < 0:  # a run that began without TRAIN.evaluate: TRAIN.patience counts from here
            self.best_epoch = self.epoch
        if (processes := content.get("processes", 1)) != distributed.world_size():
            log.warning(
                f"warning: started with {processes} processes, resuming with {distributed.world_size()}: not bit for "
                "bit as before, since each has its own dropout and, without TRAIN.sync_bn on CUDA, its own BatchNorm"
            )


def _flatten(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and key != "teacher_classes"  # which is compared as a whole
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _settings(cfg: Config) -> dict[str, Any]:
    """All that decides what is learned, as flat plain values."""
    flat: dict[str, Any] = {}
    for section, keys in cfg.model_dump(by_alias=True).items():
        if keys is not None and section in MAY_CHANGE_ON_RESUME:
            fixed = {key: value for key, value in keys.items() if key not in MAY_CHANGE_ON_RESUME[section]}
            flat |= _flatten(fixed, f"{section}.")
    for key in ("train_list", "unlabelled_list"):
        if path := getattr(cfg.data, key):
            flat[f"content of DATA.{key}"] = _digest(path, f"DATA.{key}")
    images = sum(bool(line.strip()) for line in read_text(*cfg.data.epoch_list))
    flat["steps an epoch"] = images // cfg.train.batch_size or 1
    # `auto` depends on the machine, and a file may be replaced.
    flat["TRAIN.precision"] = _precision(cfg.train.precision)
    if cfg.distill:
        flat["DISTILL.precision"] = _precision(cfg.distill.precision or cfg.train.precision)
        rounded = flat["DISTILL.precision"] != "bfloat16" or not sources.is_one_checkpoint(cfg.distill)
        if cfg.distill.cache and rounded:
            flat["float16 by DISTILL.cache"] = True
        if digest := sources.digest(cfg.distill.teachers):
            flat["content of DISTILL.teacher_path"] = digest[:12]
    return flat


def _that_count(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a checkpoint's settings, without keys that are retired or that may change by now."""
    free = {f"{section}.{key}" for section, keys in MAY_CHANGE_ON_RESUME.items() for key in keys}
    counted = defaults().keys() - free
    return {key: value for key, value in settings.items() if " " in key or ".".join(key.split(".")[:2]) in counted}


def _precision(name: str) -> str:
    return name if name == "tf32" else str(distributed.precision(name)).removeprefix("torch.")


def _digest(path: str, key: str) -> str:
    lines = [line.split() for line in read_text(path, key) if line.strip()]
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:12]


def resume(cfg: Config, model: PSPNet | StudentWithAdapters, optimizer: torch.optim.Optimizer) -> Progress:
    """The run's progress; model and optimizer as TRAIN.resume names them (auto: the newest whole one).

    A file of another folder is where the run begins: once TRAIN.save_path has checkpoints, it goes on from those.
    A checkpoint that is cut short is renamed, with a warning, and the one before it is taken.
    Raises UserError for a checkpoint of another network or of other settings.
    """
    progress = Progress(cfg, model, optimizer)
    folder, asked, found, content = progress.folder, cfg.train.resume, [None], None
    if distributed.is_main():
        found[0], content = _begin(asked, folder, cfg.check)
    if distributed.world_size() > 1:
        dist.broadcast_object_list(found)
    if found[0]:
        try:
            progress.load(content or checkpoint.read(found[0]), Path(found[0]))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise UserError(f"{found[0]} cannot be resumed ({reason:.120}); {AS_WEIGHT}") from None
        log.info("resuming from %s", found[0])
    later = [path for path in checkpoint.numbered(folder) if checkpoint.epoch_of(path) > progress.epoch]
    if later and asked != "auto":
        raise UserError(
            f"{later[-1]} is from a later epoch of another run; choose another TRAIN.save_path, or TRAIN.resume auto"
        )
    return progress


def _begin(asked: str | None, folder: Path, check: bool) -> tuple[str | None, dict[str, Any] | None]:
    """The path of the checkpoint to begin from, and its content if that was read."""
    elsewhere = asked and asked != "auto" and Path(asked).absolute().parent != folder.absolute()
    if elsewhere and checkpoint.newest_first(folder):
        log.warning(f"warning: {folder} has checkpoints of its own and goes on from them, not from {asked}")
        asked = "auto"
    return _newest_whole(folder, check) if asked == "auto" else (asked, None)


def _newest_whole(folder: Path, check: bool) -> tuple[str | None, dict[str, Any] | None]:
    """The path and content of the checkpoint to resume. Raises UserError when there are some, but none is whole."""
    paths = checkpoint.newest_first(folder)
    for path in paths:
        try:
            return str(path), checkpoint.read(path)
        except checkpoint.Damaged as error:
            aside = path.with_name(f"{path.name}.corrupt")
            if not check:
                path.replace(aside)
            log.warning("warning: %s; renamed to %s", error, aside.name)
    if paths:  # util/network.py has not read the pretrained weights, since there was a checkpoint
        raise UserError(f"no checkpoint in {folder} is whole; all are renamed; the same command now starts anew")
    return None, None
