"""Checkpoints: atomic writes, safe reads, state dicts of this project, semseg and others."""

import errno
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError, first_line, worker_death
from util.files import atomic_write

# NumPy scalars and arrays, which many projects save beside the weights.
NUMPY = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "?")},
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (np._core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
]


class Damaged(UserError):
    """A file that was a checkpoint, or should be one, and is not whole."""


def exists(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long
        return False


def save(content: dict[str, Any], path: Path) -> None:
    """Write `path` whole or not at all.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        if worker_death(error):
            raise
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch wraps a failed write
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise UserError(
            f"cannot write {path} ({reason}); make room and start again, or go on in another TRAIN.save_path with the "
            f"newest checkpoint of {path.parent} as TRAIN.resume"
        ) from None


def read(path: str | Path) -> dict[str, Any]:
    """The file's content on the CPU, with weights_only=True.

    Raises UserError for what is no safe checkpoint, and Damaged for one that is not whole.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):  # else of torch before 1.6, or no checkpoint
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():  # torch would read flipped bits as weights
                    raise Damaged(f"{path} is damaged: the checksum of {broken} differs")
        with (
            warnings.catch_warnings(action="ignore"),  # of files that torch did not write: it refuses those, too
            torch.serialization.safe_globals(NUMPY),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        there = sorted(other.name for other in Path(path).parent.glob("*.pth"))
        instead = (
            f" ({Path(path).parent} has {', '.join(there)}: name one, or the TRAIN.epochs of its run)" if there else ""
        )
        raise UserError(f"checkpoint {path} does not exist; train it first, or correct the path{instead}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything; that it runs nothing is what weights_only is for
        if worker_death(error):
            raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch's word for an archive without its end
            raise UserError(f"checkpoint {path} cannot be read ({error.strerror or error})") from None
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            if found := re.search(r"(?:GLOBAL|global) (\S+)", str(error)):
                raise UserError(
                    f"{path} is refused: it wants to run {found[1]}; only tensors, numbers and text are read: load it "
                    "where it was made and save its state_dict alone"
                ) from None
            reason = "torch did not write it"
        raise Damaged(f"{path} is not a readable checkpoint, or is cut short ({reason:.120})") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a dict with a state_dict in it")
    return dict(content)


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise UserError(f"{path} needs safetensors: pip install -r requirements-teachers.txt") from None
    return load_file(path)


def tensors(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The state dict in `content` (or `content` itself), prefix `module.` taken off."""
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state or not all(map(_can_be_weight, state.keys(), state.values())):
        raise UserError(f"{path} has no state_dict of tensors in it; its keys are {', '.join(map(str, content))[:120]}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _can_be_weight(name: Any, value: Any) -> bool:
    """Whether a named, dense tensor of real numbers, with storage."""
    if not (isinstance(name, str) and isinstance(value, Tensor)):
        return False
    dense = value.layout == torch.strided and value.device.type == "cpu"
    return dense and not (value.is_complex() or value.is_quantized)


def network_state(path: str | Path, part: str, content: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The state dict of one PSPNet in a checkpoint (read if no content is given), by our names.

    part: "student" or "teacher", for files that hold both under `student_net.` and
    `teacher_loader.`. Names of the older projects are translated: `aux_s.` becomes `aux.`.
    """
    state = tensors(content or read(path), path)
    prefixes = {"student": "student_net.", "teacher": "teacher_loader."}
    if any(key.startswith(tuple(prefixes.values())) for key in state):
        other = prefixes["teacher" if part == "student" else "student"]
        state = {key.removeprefix(prefixes[part]): value for key, value in state.items() if not key.startswith(other)}
    return {re.sub(r"^aux_s\.", "aux.", key): value for key, value in state.items()}


def check_match(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    path: str | Path,
    what: str,
    hints: Mapping[tuple[str, ...], str] | None = None,
) -> None:
    """Raise UserError unless `state` is finite and has exactly the keys and shapes of `expected`.

    hints: what helps where all that differs begins with one of these prefixes. Nothing is computed
    from a tensor before its shape is known: a few bytes can claim terabytes.
    """
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in expected]
    shapes = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    faults = [f"{label} {', '.join(keys[:3])}" for label, keys in (("missing", missing), ("unknown", unknown)) if keys]
    faults += [f"{k} is {tuple(state[k].shape)}, not {tuple(expected[k].shape)}" for k in shapes[:2]]
    if faults:
        different = [*missing, *unknown, *shapes]
        help = [text for prefixes, text in (hints or {}).items() if all(key.startswith(prefixes) for key in different)]
        raise UserError(f"{path} does not hold {what}: {'; '.join([*faults, *help])}")
    if bad := not_finite(state):
        raise UserError(f"{path} holds values that are not finite, in {', '.join(bad[:3])}; take another checkpoint")


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a NaN or an infinity in them."""
    return [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def numbered(folder: Path) -> list[Path]:
    """The run's train_epoch_N.pth, oldest first."""
    found = [path for path in folder.glob("train_epoch_*.pth") if path.stem.removeprefix("train_epoch_").isdecimal()]
    return sorted(found, key=epoch_of)


def newest_first(folder: Path) -> list[Path]:
    """The run's checkpoints, from the one to resume to the oldest; interrupted.pth comes first."""
    interrupted = folder / "interrupted.pth"
    return [interrupted] * interrupted.is_file() + numbered(folder)[::-1]


def to_resume(resume: str | None, folder: Path) -> bool:
    """Whether a run with TRAIN.resume and this folder will go on from a checkpoint."""
    return bool(newest_first(folder)) if resume == "auto" else bool(resume)


def epoch_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def prune(folder: Path, keep: int, epoch: int) -> None:
    """Remove all but the newest `keep` of the run's train_epoch_N.pth with N up to `epoch`."""
    for path in [path for path in numbered(folder) if epoch_of(path) <= epoch][:-keep]:
        path.unlink(missing_ok=True)
