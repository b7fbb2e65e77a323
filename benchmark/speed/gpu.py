"""One command that checks a GPU: the tests marked gpu, the loader's pace, and the steps beside what may speed them up.

    python benchmark/speed/gpu.py [--minutes 8] [--json gpu.json] [--dry-run]

`make gpu` runs it in .venv; any Python with torch >= 2.6, the other packages of requirements.txt and
pytest will do. Each part is a process with its share of the time that is left, which is stopped
when that is over; what it had measured stays. The JSON names card and versions; every way is
measured in alternation with `ours`, to which its ratio relates, and is absent where it was not
reached or failed. --dry-run passes through all of it on a CPU, at tiny sizes and without compiling.
"""

import argparse
import gc
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PACKAGES = "cv2 numpy PIL pydantic pytest scipy tensorboardX torchvision tqdm yaml".split()
if absent := [name for name in PACKAGES if not importlib.util.find_spec(name)]:
    sys.stderr.write(f"error: not installed: {', '.join(absent)}; see requirements.txt (cv2 is OpenCV), and pytest\n")
    sys.exit(2)

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmark.speed import measure, step_variants  # noqa: E402
from util import distributed, files  # noqa: E402
from util.errors import UserError  # noqa: E402
from util.run import errors_in_one_line  # noqa: E402

SHARES = {"tests": 160, "loading": 40, "distillation": 130, "student": 70, "teacher": 70}  # seconds of eight minutes
# In the order of what one would rather know; what compiles the same graph once more comes cheaper.
WAYS = {
    "distillation": "compile compile+compiled-loss compile+stream reduce-overhead reduce-overhead+compiled-loss fp32 "
    "tf32 foreach bf16-weights stream teacher-compile compile+foreach compile+bf16-weights max-autotune",
    "student": "compile compile+compiled-loss reduce-overhead reduce-overhead+compiled-loss fp32 foreach max-autotune",
    "teacher": "compile compile+compiled-loss reduce-overhead fp32 foreach max-autotune",
}
SIZES = {"crop": 473, "batch": 16, "classes": 21, "repeats": 4, "steps": 5}
DRY = {"crop": 33, "batch": 2, "classes": 21, "repeats": 1, "steps": 1}


def compare(kind: str, options: argparse.Namespace, folder: Path) -> None:
    """Write to options.json each way's row beside `ours`, after every way, until options.seconds are over."""
    deadline = time.monotonic() + options.seconds
    with FlopCounterMode(display=False) as counter:
        step_variants.plain_step(kind, options)()
    work, ways = counter.get_total_flops() / 1e9, {"ours": step_variants.make("ours", kind, options, folder)}
    convolution, gflop = measure.convolution_throughput(distributed.precision("auto"))
    ceiling = gflop / statistics.median(measure.time_alternately(ways, 1, convolution)["reference"])
    found: dict[str, Any] = {"relative_to": "ours, in the same rounds", "GFLOP": work, "ceiling": ceiling}
    found |= {"ways": {}, "failed": {}, "left_out": WAYS[kind].split()}
    longest = 0.0
    while found["left_out"] and (began := time.monotonic()) + longest < deadline:
        name = found["left_out"].pop(0)
        try:
            ways[name] = step_variants.make(name, kind, options, folder)
            first = measure.timed(ways[name])
            several = {key: _repeated(step, options.steps) for key, step in ways.items()}
            rows = measure.summary(measure.time_alternately(several, options.repeats), "ours")
        except Exception as error:  # whatever the compiler may raise: the other ways are still to be measured
            found["failed"][name] = f"{error!r:.300}"
        else:
            for row in rows.values():
                row |= {key: row[key] / options.steps for key in ("seconds", "least", "most")}
                row |= {"images_a_second": options.batch / row["seconds"], "share": work / row["seconds"] / ceiling}
            found["ways"] = {"ours": rows["ours"], **found["ways"], name: rows[name] | {"first_step": first}}
            longest = max(longest, time.monotonic() - began)
        ways, several = {"ours": ways["ours"]}, None
        torch.compiler.reset()
        gc.collect()  # the way's networks, of which the compiler's cycles would keep gigabytes
        files.replace_text(options.json, json.dumps(found))


def _repeated(step: measure.Work, times: int) -> measure.Work:
    """Several steps without waiting for the device between them, as in training."""
    return lambda: [step() for _ in range(times)]


def run_part(command: list[str], seconds: float, path: Path) -> dict[str, Any]:
    """What a part's process leaves in `path`, how it ended, and its tests' outcomes; stopped after `seconds`."""
    log, began = path.with_suffix(".log"), time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's processes, too
        status = process.wait()
    found = json.loads(path.read_text()) if path.is_file() else {}
    found = found.get("results", found)
    text = log.read_text(errors="replace")
    last = (text.strip().splitlines() or [""])[-1]
    took = f"{time.monotonic() - began:.0f} s"
    ends = {0: f"after {took}", -signal.SIGKILL: f"stopped after {took}"}
    found["ended"] = ends.get(status, f"status {status}: {last}")
    outcomes = re.findall(r"^tests/\w+\.py::(\S+) (PASSED|FAILED|ERROR|SKIPPED)", text, re.MULTILINE)
    if outcomes:
        reasons = dict(re.findall(r"^(?:FAILED|ERROR) tests/\w+\.py::(\S+) - (.*)$", text, re.MULTILINE))
        found["tests"] = {name: f"{outcome.lower()} {reasons.get(name, '')}".strip() for name, outcome in outcomes}
    print(f"\n## {path.stem}: {found['ended']}\n\n{text[-3000:]}", flush=True)
    return {"ways": {}, **found}


def commands(options: argparse.Namespace, sizes: dict[str, int], cores: int) -> dict[str, list[str]]:
    """Each part's, without --json and the time that it may take."""
    given = [f"--{key}={value}" for key, value in sizes.items()]
    python, folder = sys.executable, "benchmark/speed"
    tests = ["-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-v", "-rfE", "--tb=short", "-m", "gpu"]
    workers = "0,1" if options.dry_run else ",".join(str(n) for n in sorted({1, max(cores // 2, 1), cores}))
    loading = ["--ways", "ours,compile", "--workers", workers, "--batches", "1" if options.dry_run else "40"]
    return {
        "tests": [python, *tests, "tests/test_gpu.py"],
        "loading": [python, f"{folder}/loading.py", *given[:-1], *loading],
        **{kind: [python, f"{folder}/gpu.py", "--part", kind, *given] for kind in WAYS},
    }


def main() -> None:
    parser = measure.parser(__doc__, minutes=8, **SIZES)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny, without compiling: no measurement")
    parser.add_argument("--part", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with errors_in_one_line(), tempfile.TemporaryDirectory() as name:
        if options.part:
            compare(options.part, options, Path(name))
            return
        if not options.dry_run and not torch.cuda.is_available():
            raise UserError("PyTorch sees no GPU here; --dry-run passes through all parts without one")
        if options.dry_run:
            os.environ |= {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
        options.json = options.json or Path("gpu.json")
        vars(options).update(DRY if options.dry_run else {})
        sizes = {key: vars(options)[key] for key in SIZES}
        end, results = time.monotonic() + 60 * options.minutes - 10, {}
        for part, command in commands(options, sizes, os.cpu_count() or 1).items():
            left = sum(share for key, share in SHARES.items() if key not in results)
            seconds = (end - time.monotonic()) * SHARES[part] / left
            path = Path(name, f"{part}.json")
            more = [] if part == "tests" else ["--json", str(path)]
            more += ["--seconds", f"{seconds - 10:.0f}"] if part in WAYS else []
            results[part] = run_part([*command, *more], max(seconds, 1), path)
            measure.save(options, results)
        measure.report(options, results)


if __name__ == "__main__":
    main()
