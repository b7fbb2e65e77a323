"""Stopping and going on: a run's progress, its checkpoints, signals, and the lock on its folder."""

import contextlib
import fcntl
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.distill.adapters import Adapted
from model.pspnet import PSPNet
from util import checkpoint, run
from util.config import Config
from util.dataset import read_text
from util.errors import UserError

TO_BE_CONTINUED = 75  # exit status EX_TEMPFAIL: nothing is wrong, run the same command again

# Keys that cannot change what is learned, and so may change between start and resume. The training list may move: its
# content is compared.
FREE = {
    "DATA": {"data_root", "train_list", "unlabelled_list", "val_list", "names_path", "colors_path"},
    "TRAIN": {"workers", "batch_size_val", "print_freq", "save_freq", "keep", "save_path", "weight", "pretrained"}
    | {"resume", "evaluate", "patience", "gradient_shares", "pictures"},
    "DISTILL": {"check_images"},
    "TEST": None,  # all of it
}

log = logging.getLogger("resume")


class Progress:
    """How far a run is, and what its checkpoints hold beside that. Only rank 0 writes."""

    def __init__(self, cfg: Config, folder: Path, model: PSPNet | Adapted, optimizer: torch.optim.Optimizer, seed: int):
        self.cfg, self.folder, self.optimizer, self.seed = cfg, folder, optimizer, seed
        self.modules: dict[str, nn.Module] = {"state_dict": model}  # what testing loads is the network alone
        if isinstance(model, Adapted):
            self.modules = {"state_dict": model.net, "adapters": model.adapters}
        self.step, self.best, self.best_epoch = 0, -1.0, 0
        self.partial: dict[str, Any] | None = None  # of an epoch that a signal broke off
        self.settings = _settings(cfg)

    def save(self, name: str) -> None:
        """Write a checkpoint; one of a whole epoch replaces what a signal left, and older ones beyond TRAIN.keep."""
        if not run.is_main():
            return
        content = {key: getattr(self, key) for key in ("step", "best", "best_epoch", "seed", "partial", "settings")}
        content["epoch"] = self.step // self.settings["steps an epoch"]
        content |= {key: module.state_dict() for key, module in self.modules.items()}
        content["optimizer"] = self.optimizer.state_dict()
        checkpoint.save(content, self.folder / name)
        if name.startswith("train_epoch_"):
            (self.folder / "interrupted.pth").unlink(missing_ok=True)
            checkpoint.prune(self.folder, self.cfg.train.keep, content["epoch"])

    def exhausted(self, epoch: int) -> bool:
        """Whether val mIoU has not risen for TRAIN.patience epochs, up to `epoch`."""
        patience = self.cfg.train.patience
        return bool(patience) and epoch - self.best_epoch >= patience

    def load(self, content: dict[str, Any], path: Path) -> None:
        needed = ("step", "best", "best_epoch", "seed", "settings", *self.modules, "optimizer")
        absent = [key for key in needed if key not in content]
        if absent:
            raise UserError(f"{path} cannot be resumed: it has no {', '.join(absent)}; give it as TRAIN.weight instead")
        then = content["settings"]
        if changed := [f"{key} (was {then.get(key)}, is {self.settings.get(key)})"
                       for key in {**then, **self.settings} if then.get(key) != self.settings.get(key)]:  # fmt: skip
            raise UserError(
                f"{path} was trained with other settings: {', '.join(changed)}; take them back, or start anew with "
                "another TRAIN.save_path"
            )
        for key, module in self.modules.items():
            checkpoint.check_match(content[key], module.state_dict(), path, f"this run's network ({key})")
            module.load_state_dict(content[key])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.best, self.best_epoch, self.seed = (
            content[key] for key in ("step", "best", "best_epoch", "seed")
        )
        self.partial = content.get("partial")


def _settings(cfg: Config) -> dict[str, Any]:
    """All that decides what is learned, as flat plain values."""
    flat: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    for section, keys in cfg.model_dump(by_alias=True).items():
        free = FREE.get(section, set())
        if keys is not None and free is not None:
            walk({key: value for key, value in keys.items() if key not in free}, f"{section}.")
    for key in ("train_list", "unlabelled_list"):
        if path := getattr(cfg.data, key):
            lines = [line.split() for line in read_text(path, f"DATA.{key}") if line.strip()]
            flat[f"content of DATA.{key}"] = hashlib.sha256(repr(lines).encode()).hexdigest()[:12]
            if key == "train_list":
                flat["steps an epoch"] = len(lines) // cfg.train.batch_size or 1
    return flat


def resume(cfg: Config, folder: Path, model: PSPNet | Adapted, optimizer: torch.optim.Optimizer) -> Progress:
    """The run's progress, with model and optimizer as TRAIN.resume names them: auto takes the newest whole checkpoint.

    One that is cut short is set aside under another name, with a warning, and the one before it is taken. Raises
    UserError for a checkpoint of another network or of other settings.
    """
    progress = Progress(cfg, folder, model, optimizer, _seed(cfg))
    found: list[str | None] = [cfg.train.resume]
    if cfg.train.resume == "auto":
        if run.is_main():
            found = [_newest_whole(folder)]
        if run.world_size() > 1:
            dist.broadcast_object_list(found)
    if found[0]:
        progress.load(checkpoint.read(found[0]), Path(found[0]))
        log.info("going on from %s", found[0])
    epoch = progress.step // progress.settings["steps an epoch"]
    later = [path for path in checkpoint.numbered(folder) if checkpoint.epoch_of(path) > epoch]
    if later and cfg.train.resume != "auto":
        raise UserError(
            f"{later[-1]} is from a later epoch of another run; choose another TRAIN.save_path, or TRAIN.resume auto"
        )
    return progress


def _newest_whole(folder: Path) -> str | None:
    for path in checkpoint.newest_first(folder):
        try:
            checkpoint.read(path)
            return str(path)
        except checkpoint.Damaged as error:
            aside = path.with_name(f"{path.name}.corrupt")
            path.replace(aside)
            log.warning("warning: %s; set aside as %s", error, aside.name)
    return None


def _seed(cfg: Config) -> int:
    """TRAIN.manual_seed, or one drawn by the first process for all."""
    drawn = [cfg.train.manual_seed if cfg.train.manual_seed is not None else torch.seed() % 2**31]
    if run.world_size() > 1:
        dist.broadcast_object_list(drawn)
    return drawn[0]


class Interrupt:
    """While entered, SIGTERM, SIGINT and SIGUSR1 (SLURM's early warning) ask for a stop instead of making one."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __enter__(self) -> "Interrupt":
        self.asked = 0  # the signal
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: somebody does not want to wait
        self.asked = number

    def agreed(self, meeting: bool) -> bool:
        """Whether any process was asked to stop. Several processes compare notes only when all are at a `meeting`."""
        if run.world_size() == 1:
            return bool(self.asked)
        if not meeting:
            return False
        asked = torch.tensor(self.asked, device=run.device())
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked)

    def leave(self, text: str) -> None:
        log.info(text)
        sys.exit(TO_BE_CONTINUED)


@contextlib.contextmanager
def named_worker_death() -> Iterator[None]:
    """Make one line of the death of a process that loads images; PyTorch raises it wherever the run happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].strip(". ")
        raise UserError(
            f"a process that loads images died ({reason}); start again, it goes on from the last checkpoint; if memory "
            "is short, lower TRAIN.workers"
        ) from None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other runs out of it. The kernel lets go of the lock when the process dies."""
    if not run.is_main():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot make or write {folder} (TRAIN.save_path): {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by DataLoader workers
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{folder} is in use by another run (process {holder}); stop it or change TRAIN.save_path"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
