"""What the benchmarks share: taking turns, medians and ratios, the convolution ceiling, peak memory, JSON."""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from util import distributed, run
from util.errors import UserError


class Variant(NamedTuple):
    """One of the ways to do a piece of work, and what must hold around it."""

    work: Callable[[], Any]
    around: Callable[[], AbstractContextManager]


@contextlib.contextmanager
def default_malloc() -> Iterator[None]:
    """Without run.keep_freed_memory: as every other program runs."""
    run.keep_freed_memory(False)
    yield


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call, the device's work included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def turns(variants: Mapping[str, Variant], repeats: int, floor: Callable[[], Any] | None = None) -> dict[str, list]:
    """Seconds of each call, in turns A B A B; after each, `floor` is timed into the list "floor".

    The first turn warms up and is left out. Every timed call has an untimed one before it, since the memory
    allocator and the caches remember what ran before.
    """
    times: dict[str, list[float]] = {name: [] for name in (*variants, *(["floor"] if floor else []))}
    for turn in range(repeats + 1):
        for name, (work, around) in variants.items():
            with around():
                timed(work)
                seconds = timed(work)
            below = timed(floor) if floor else None
            if turn:
                times[name].append(seconds)
                if floor:
                    times["floor"].append(below)
    return times


def summary(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Of each variant the median seconds, their extremes, and the median over the turns of its ratio to `base`."""
    return {
        name: {
            "seconds": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "ratio": statistics.median(v / b for v, b in zip(values, times[base], strict=True)),
        }
        for name, values in times.items()
        if name != "floor"
    }


def ceiling(dtype: torch.dtype) -> tuple[Callable[[], None], float]:
    """The pace that convolutions reach: a 3x3 of 256 channels, forward. -> what to time, and its GFLOP."""
    place = {"device": distributed.device(), "dtype": dtype}
    times = 200 if distributed.device().type == "cuda" else 4  # a tenth of a second, so that starting it does not count
    x = torch.randn(8, 256, 60, 60, **place).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, **place).to(memory_format=torch.channels_last)

    def convolve() -> None:
        with torch.no_grad():
            for _ in range(times):
                F.conv2d(x, weight, padding=1)

    return convolve, times * 2 * x[:, 0].numel() * weight.numel() / 1e9


def _status(field: str) -> int:
    """MiB of a field of /proc/self/status. (ru_maxrss would count the process that started this one.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(field))


def peak_here() -> int:
    """MiB that this process has held at most: on a GPU what its tensors took, else its resident memory (Linux)."""
    return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else _status("VmHWM")


def forget_peak() -> int:
    """Let peak_here() begin anew -> MiB held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() >> 20
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def in_process(*command: object, environment: Mapping[str, str] | None = None) -> Any:
    """What a Python command prints as its last line, read as JSON; a fresh process has no other variant's memory."""
    words = [sys.executable, *map(str, command)]
    result = subprocess.run(words, capture_output=True, text=True, env=environment)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(words)} failed: {last}")
    return json.loads(result.stdout.splitlines()[-1])


def call(*command: str) -> None:
    """Run a Python script of the project; exit with its status when it fails."""
    status = subprocess.run([sys.executable, *command], cwd=Path(__file__).resolve().parent.parent).returncode
    if status:
        sys.exit(status)


def machine() -> dict[str, Any]:
    """What a number must be read with."""
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    if torch.cuda.is_available():
        model = torch.cuda.get_device_name()
    return {
        "device": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "auto": str(distributed.precision("auto")).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def parser(description: str, **numbers: int) -> argparse.ArgumentParser:
    """A parser with an integer option for each of `numbers`, and --json."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="default: %(default)s")
    made.add_argument("--json", type=Path, help="file to write what was measured to")
    return made


def report(arguments: argparse.Namespace, results: Any) -> None:
    """Write machine, arguments and results to --json, if it was given."""
    if arguments.json:
        given = {k: v for k, v in vars(arguments).items() if k != "json" and not isinstance(v, Path)}
        text = json.dumps({"machine": machine(), "arguments": given, "results": results}, indent=1)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


def main(benchmark: Callable[[], None]) -> None:
    """Run `benchmark`; a UserError becomes one line on stderr and exit status 2."""
    try:
        benchmark()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
