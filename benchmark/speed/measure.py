"""What the speed benchmarks share: timing in alternation, medians and ratios, peak memory, JSON."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmark import tables
from util import distributed
from util.errors import UserError

Work = Callable[[], Any]


def timed(work: Work) -> float:
    """Seconds of one call, the device's work included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_alternately(ways: Mapping[str, Work], repeats: int, reference: Work | None = None) -> dict[str, list[float]]:
    """Seconds of each call, in the order A B A B; after each, `reference` is timed, too.

    The first round warms up and is left out. Every timed call follows an untimed one of the same
    way, since the memory allocator and the caches remember what ran before.
    """
    times: dict[str, list[float]] = {name: [] for name in (*ways, *(["reference"] if reference else []))}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            timed(work)
            seconds = {name: timed(work)} | ({"reference": timed(reference)} if reference else {})
            for key, value in seconds.items() if turn else ():
                times[key].append(value)
    return times


def summary(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Each way's median seconds, extremes, and median over the rounds of its ratio to `base`."""
    return {
        name: {
            "seconds": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "ratio": statistics.median(v / b for v, b in zip(values, times[base], strict=True)),
        }
        for name, values in times.items()
        if name != "reference"
    }


def convolution_throughput(dtype: torch.dtype) -> tuple[Work, float]:
    """A forward 3x3 convolution of 256 channels, repeated -> what to time, and its GFLOP."""
    place = {"device": distributed.device(), "dtype": dtype}
    times = 200 if distributed.device().type == "cuda" else 4  # a tenth of a second, so that launching does not count
    x = torch.randn(8, 256, 60, 60, **place).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, **place).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def convolve() -> None:
        for _ in range(times):
            F.conv2d(x, weight, padding=1)

    return convolve, times * 2 * x[:, 0].numel() * weight.numel() / 1e9


def peak() -> int:
    """Most MiB that this process held: on a GPU in tensors, else resident (Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def peak_of(script: str, options: argparse.Namespace, *more: object) -> int:
    """What `script --only` prints for these sizes in a process that holds nothing else."""
    sizes = [part for key in ("crop", "batch", "classes") for part in (f"--{key}", getattr(options, key))]
    words = [sys.executable, *map(str, (script, *sizes, *more))]
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(words)} failed: {last}")
    return json.loads(result.stdout.splitlines()[-1])


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
    made.add_argument("--json", type=Path, help="file to write the measurements to")
    return made


def save(arguments: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    """`results` with machine and arguments, also written to --json, if given."""
    given = {k: v for k, v in vars(arguments).items() if k != "json"}
    found = {"machine": machine(), "arguments": given, "results": results}
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


def report(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Save `results`, and print their table."""
    print(tables.speed(Path(sys.argv[0]).stem, save(arguments, results)), flush=True)
