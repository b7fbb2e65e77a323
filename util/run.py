"""What every script needs around its experiment: arguments, errors, processes, device, precision, seeds."""

import argparse
import contextlib
import ctypes
import datetime
import logging
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from util import config
from util.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def device() -> torch.device:
    """The one place that picks the device: this process's GPU when there is one, the CPU otherwise."""
    if torch.cuda.is_available():
        index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"there are {count} GPUs for more processes; lower torchrun's --nproc_per_node")
        return torch.device("cuda", index)
    return torch.device("cpu")


def precision(name: str) -> torch.dtype:
    """The dtype of convolutions for TRAIN.precision or TEST.precision.

    auto means bfloat16 only where the hardware computes in it: elsewhere it is emulated, and slower than float32.
    """
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability(device()) >= (8, 0)
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            flags = ""
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if native else torch.float32


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device().type, dtype, enabled=dtype != torch.float32)


def compiled(module: nn.Module, wanted: bool) -> nn.Module:
    """torch.compile of `module` if wanted (TRAIN.compile); it shares its parameters. Raises UserError without means."""
    if not wanted:
        return module
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError("TRAIN.compile needs a C++ compiler: install g++ (or name one in CXX), or set it to False")
    return torch.compile(module, dynamic=False)


def seed_everything(*keys: int) -> None:
    """Seed every generator from the whole tuple `keys`, so that (seed, rank, step) never repeats a stream."""
    seed = int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def processes():
    """The process group of torchrun, if torchrun started this process: NCCL on CUDA, gloo on the CPU."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(f"process {rank()} lost the others; the one that ended first says why") from None
    # Not after an error: the others would not come, and torchrun ends them as soon as this process is gone.
    dist.barrier()  # the first process may still be writing, and a launcher may end it with the one that exits first
    dist.destroy_process_group()


def keep_freed_memory(keep: bool = True) -> None:
    """Let glibc keep freed memory instead of giving each large tensor's pages back and faulting them in again.

    On a CPU, PyTorch takes every tensor from malloc, whose default returns blocks of over 128 KiB to the kernel at
    once, and a good part of a step goes into page faults (benchmark/step.py measures it). keep=False restores that.
    """
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library: slower, not wrong
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30 if keep else 128 << 10)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1 if keep else 128 << 10)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


@contextlib.contextmanager
def errors_in_one_line():
    """A UserError becomes one line on stderr and exit status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def parse_arguments(description: str, default_config: str, argv: list[str] | None = None) -> config.Config:
    parser = Parser(
        description=description,
        usage="%(prog)s [--config FILE] [--check] [SECTION.key VALUE ...]",
        epilog=f"example: python %(prog)s --config {default_config} TRAIN.epochs 2 TEST.scales '[0.75, 1.0]'",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default=default_config, help="YAML file (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="read everything, take a step, predict; write nothing")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key VALUE", help="replace a value of the YAML file")
    arguments = parser.parse_intermixed_args(argv)
    cfg = config.load(arguments.config, arguments.overrides)
    return cfg.model_copy(update={"check": arguments.check})


def main(experiment: Callable[[config.Config], None], default_config: str) -> None:
    """Run a script's `experiment` on its config; a UserError becomes one line on stderr and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    with errors_in_one_line():
        cfg = parse_arguments(sys.modules["__main__"].__doc__, default_config)
        keep_freed_memory()
        with processes():
            if not is_main():
                logging.disable(logging.INFO)
            if cfg.train.manual_seed is not None:
                seed_everything(cfg.train.manual_seed)
            experiment(cfg)
