"""Going on: a run's progress, its checkpoints, and the settings that may not change."""

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from model.distill.adapters import StudentWithAdapters
from model.pspnet import PSPNet
from util import checkpoint, distributed
from util.config import Config
from util.data.lists import read_text
from util.errors import UserError

# Keys that cannot change what is learned, and so may change between start and resume. The training list may move: its
# content is compared.
MAY_CHANGE_ON_RESUME = {
    "DATA": {"data_root", "train_list", "unlabelled_list", "val_list", "names_path", "colors_path", "allow_outside"},
    "TRAIN": {"workers", "batch_size_val", "print_freq", "save_freq", "keep", "save_path", "weight", "pretrained"}
    | {"resume", "evaluate", "patience", "gradient_shares", "pictures", "skip_nonfinite"},
    "DISTILL": {"check_images", "cache", "cache_gb"},
    "TEST": None,  # all of it
}

log = logging.getLogger("resume")


class Progress:
    """How far a run is, and what its checkpoints hold beside that. Only rank 0 writes."""

    def __init__(
        self,
        cfg: Config,
        folder: Path,
        model: PSPNet | StudentWithAdapters,
        optimizer: torch.optim.Optimizer,
        seed: int,
    ):
        self.cfg, self.folder, self.optimizer, self.seed = cfg, folder, optimizer, seed
        self.modules: dict[str, nn.Module] = {"state_dict": model}  # what testing loads is the network alone
        if isinstance(model, StudentWithAdapters):
            self.modules = {"state_dict": model.net}
            if model.adapters.state_dict():  # many losses need none
                self.modules["adapters"] = model.adapters
        self.step, self.best, self.best_epoch = 0, -1.0, 0
        self.partial: dict[str, Any] | None = None  # of an epoch whose line is not written yet
        self.skipped = 0  # steps whose loss was not finite
        self.settings = _settings(cfg)

    def save(self, name: str) -> None:
        """Write a checkpoint; one of a whole epoch replaces what a signal left, and older ones beyond TRAIN.keep."""
        if not distributed.is_main():
            return
        names = ("step", "best", "best_epoch", "seed", "partial", "skipped", "settings")
        content = {key: getattr(self, key) for key in names}
        content["processes"] = distributed.world_size()
        content["epoch"] = self.step // self.settings["steps an epoch"]
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
            checkpoint.prune(self.folder, self.cfg.train.keep, content["epoch"])

    def exhausted(self, epoch: int) -> bool:
        """Whether val mIoU has not risen for TRAIN.patience epochs, up to `epoch`."""
        patience = self.cfg.train.patience
        return bool(patience) and epoch - self.best_epoch >= patience

    def load(self, content: dict[str, Any], path: Path) -> None:
        try:
            saved = Saved.model_validate(dict(content))
            states = {key: checkpoint.tensors({"state_dict": getattr(saved, key)}, path) for key in self.modules}
            _check_optimizer(saved.optimizer, self.optimizer)
        except ValidationError as errors:
            faults = [f"{error['loc'][0]}: {error['msg']}" for error in errors.errors(include_url=False)]
            raise UserError(f"{path} cannot be resumed ({'; '.join(faults)}); make it TRAIN.weight instead") from None
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} cannot be resumed: its optimizer does not fit ({error!r:.80})") from None
        then = saved.settings
        if changed := [f"{key} (was {then.get(key)}, is {self.settings.get(key)})"
                       for key in {**then, **self.settings} if then.get(key) != self.settings.get(key)]:  # fmt: skip
            raise UserError(
                f"{path} was trained with other settings: {', '.join(changed)}; take them back, or start anew with "
                "another TRAIN.save_path"
            )
        for key, module in self.modules.items():
            checkpoint.check_match(states[key], module.state_dict(), path, f"this run's network ({key})")
            module.load_state_dict(states[key])
        self.optimizer.load_state_dict(saved.optimizer)
        for key in ("step", "best", "best_epoch", "seed", "skipped"):
            setattr(self, key, getattr(saved, key))
        self.partial = saved.partial and dict(saved.partial)
        if saved.processes != distributed.world_size():
            log.warning(
                "warning: started with %d processes, going on with %d: not bit for bit as before, since each has its "
                "own dropout and, without TRAIN.sync_bn on CUDA, its own BatchNorm",
                saved.processes,
                distributed.world_size(),
            )


class Partial(BaseModel):
    """Running sums of an epoch: see Stepper.state."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    sums: Tensor
    matrix: Tensor
    count: Annotated[int, Field(ge=0)]
    lr: float
    shares: dict[str, float]


class Saved(BaseModel):
    """What a checkpoint must hold to be resumed."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    step: Annotated[int, Field(ge=0, lt=2**53)]
    best: Annotated[float, Field(ge=-1, le=1)]
    best_epoch: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    skipped: Annotated[int, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=1)] = 1
    settings: dict[str, Any]
    state_dict: dict[str, Tensor]
    adapters: dict[str, Tensor] = {}
    optimizer: dict[str, Any]
    partial: Partial | None = None


def _check_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError, or whatever a wrong structure raises, unless `saved` fits the optimizer's parameters."""
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("other groups of parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in saved["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)}")
            if value is not None and not torch.as_tensor(value).isfinite().all():
                raise ValueError(f"{name} is not finite")


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
        free = MAY_CHANGE_ON_RESUME.get(section, set())
        if keys is not None and free is not None:
            walk({key: value for key, value in keys.items() if key not in free}, f"{section}.")
    for key in ("train_list", "unlabelled_list"):
        if path := getattr(cfg.data, key):
            lines = [line.split() for line in read_text(path, f"DATA.{key}") if line.strip()]
            flat[f"content of DATA.{key}"] = hashlib.sha256(repr(lines).encode()).hexdigest()[:12]
            if key == "train_list":
                flat["steps an epoch"] = len(lines) // cfg.train.batch_size or 1
    # What decides is not always what the config says: `auto` depends on the machine, and a file may be replaced.
    flat["TRAIN.precision"] = str(distributed.precision(cfg.train.precision)).removeprefix("torch.")
    if cfg.distill:
        precision = distributed.precision(cfg.distill.precision or cfg.train.precision)
        flat["DISTILL.precision"] = str(precision).removeprefix("torch.")
        if cfg.distill.cache and precision == torch.float32:  # bfloat16 is kept as it is
            flat["float16 by DISTILL.cache"] = True
        if checkpoint.exists(flat.pop("DISTILL.teacher_path")):
            with Path(cfg.distill.teacher_path).open("rb") as file:
                flat["content of DISTILL.teacher_path"] = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return flat


def resume(
    cfg: Config, folder: Path, model: PSPNet | StudentWithAdapters, optimizer: torch.optim.Optimizer
) -> Progress:
    """The run's progress, with model and optimizer as TRAIN.resume names them: auto takes the newest whole checkpoint.

    One that is cut short is set aside under another name, with a warning, and the one before it is taken. Raises
    UserError for a checkpoint of another network or of other settings.
    """
    progress = Progress(cfg, folder, model, optimizer, _seed(cfg))
    found, content = [cfg.train.resume], None
    if cfg.train.resume == "auto":
        if distributed.is_main():
            found[0], content = _newest_whole(folder, cfg.check)
        if distributed.world_size() > 1:
            dist.broadcast_object_list(found)
    if found[0]:
        progress.load(content or checkpoint.read(found[0]), Path(found[0]))
        log.info("going on from %s", found[0])
    epoch = progress.step // progress.settings["steps an epoch"]
    later = [path for path in checkpoint.numbered(folder) if checkpoint.epoch_of(path) > epoch]
    if later and cfg.train.resume != "auto":
        raise UserError(
            f"{later[-1]} is from a later epoch of another run; choose another TRAIN.save_path, or TRAIN.resume auto"
        )
    return progress


def _newest_whole(folder: Path, check: bool) -> tuple[str | None, dict[str, Any] | None]:
    """The path and content of the checkpoint to go on from. Raises UserError when there are some, but none is whole."""
    paths = checkpoint.newest_first(folder)
    for path in paths:
        try:
            return str(path), checkpoint.read(path)
        except checkpoint.Damaged as error:
            aside = path.with_name(f"{path.name}.corrupt")
            if not check:
                path.replace(aside)
            log.warning("warning: %s; set aside as %s", error, aside.name)
    if paths:  # model/pspnet.py has left out the ImageNet weights, since there was a checkpoint
        raise UserError(f"no checkpoint in {folder} is whole; all are set aside; the same command now starts anew")
    return None, None


def _seed(cfg: Config) -> int:
    """TRAIN.manual_seed, or one drawn by the first process for all."""
    drawn = [cfg.train.manual_seed if cfg.train.manual_seed is not None else torch.seed() % 2**31]
    if distributed.world_size() > 1:
        dist.broadcast_object_list(drawn)
    return drawn[0]
