"""Processes, device and precision: what is the same for all code of one process."""

import contextlib
import datetime
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from util.errors import UserError, first_line


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def indices_of_this_rank(count: int) -> range:
    """Every world_size-th of `count` indices, from this rank's on: no image is scored twice."""
    return range(rank(), count, world_size())


def all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """`tensor` reduced over all processes, in place; a collective. Alone, `tensor` as it is."""
    if world_size() > 1:
        dist.all_reduce(tensor, op)
    return tensor


def device() -> torch.device:
    """This process's GPU when there is one, else the CPU. Raises UserError for more processes than GPUs."""
    if torch.cuda.is_available():
        index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"there are {count} GPUs for more processes; lower torchrun's --nproc_per_node")
        return torch.device("cuda", index)
    return torch.device("cpu")


def precision(name: str) -> torch.dtype:
    """The dtype of convolutions for TRAIN.precision or TEST.precision.

    auto is bfloat16 where the hardware computes in it, else float32: emulated bfloat16 is slower than float32.
    """
    if name != "auto":
        return {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}[name]
    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability(device()) >= (8, 0)
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            flags = ""
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if native else torch.float32


def training_layout(dtype: torch.dtype) -> torch.memory_format:
    """Of weights and images in training: in float32 on a CPU the gradients of channels-last weights cost copies."""
    plain = dtype == torch.float32 and device().type == "cpu"
    return torch.contiguous_format if plain else torch.channels_last


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device().type, dtype, enabled=dtype != torch.float32)


def _environment(name: str, default: str | None = None) -> int:
    """A number that torchrun, or a SLURM script, puts into the environment. Raises UserError for other text."""
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        found = "is missing" if text is None else f"is {text!r}, not a number"
        raise UserError(f"several processes are asked for, but {name} {found}; start with torchrun --nproc_per_node N")
    return int(text)


@contextlib.contextmanager
def processes():
    """The process group of torchrun, if torchrun started this process: NCCL on CUDA, gloo on the CPU."""
    if _environment("WORLD_SIZE", "1") <= 1:
        yield
        return
    number, port = _environment("RANK"), _environment("MASTER_PORT")
    if "MASTER_ADDR" not in os.environ:
        raise UserError("several processes are asked for, but MASTER_ADDR is missing; start with torchrun")
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"process {number} cannot meet the others at {os.environ['MASTER_ADDR']}:{port} ({reason:.200}); if "
            "another job has that port, choose another MASTER_PORT"
        ) from None
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(f"process {rank()} lost the others; the one that ended first says why") from None
    # Not after an error: the others would not come, and torchrun ends them as soon as this process is gone.
    dist.barrier()  # the first process may still be writing, and a launcher may end it with the one that exits first
    dist.destroy_process_group()


def allow_tf32(precision: str, teacher: str | None = None) -> None:
    """Let float32 convolutions on CUDA round their inputs to 10 bits if `precision`, or the teacher's, is tf32.

    Matrix products, which the losses have, too, follow `precision` alone.

    PyTorch's own default allows it, so that float32 would not mean float32 on Ampere and later.
    """
    torch.backends.cudnn.allow_tf32 = "tf32" in (precision, teacher)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
