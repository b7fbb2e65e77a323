"""How the cost of a training step grows: tables over crop, batch, classes and processes, and the losses' memory.

    python benchmark/growth.py [--repeats 3] [--kinds student,distillation] [--crops 241,361,473,713]
                               [--batches 2,4,8] [--class-counts 2,21,150] [--process-counts 1,2] [--json FILE]

Each cell is a fresh process (or, for several processes, a torchrun): median seconds a step after two to warm up, and
its peak memory. One size changes at a time; the others stay at --crop 473, --batch 2, 21 classes, one process. With
several processes each has an equal part of the batch (at least 2 images: BatchNorm) and of the cores.

The losses' memory is what their forward and backward add, at --crop and the most classes, in full-size logits
tensors (N x classes x crop x crop float32).
"""

import json
import os
import statistics
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import measure, steps  # noqa: E402
from model.distill.features import mse  # noqa: E402
from model.distill.logits import kl  # noqa: E402
from model.labels import Labels, sample_labels  # noqa: E402
from model.loss import supervised_losses  # noqa: E402
from model.pspnet import Output  # noqa: E402
from util import distributed  # noqa: E402

AXES = {"crop": "crops", "batch": "batches", "classes": "class_counts", "processes": "process_counts"}


def cell(kind: str, options: Namespace) -> dict[str, float]:
    """Seconds a step and peak MiB, in this process."""
    with tempfile.TemporaryDirectory() as folder, distributed.processes():
        options.batch //= distributed.world_size()
        step = steps.script_step(kind, "auto", options, Path(folder))
        for _ in range(2):
            step()
        seconds = statistics.median(measure.timed(step) for _ in range(options.repeats))
    return {"seconds": seconds, "peak_MiB": measure.peak_here()}


def losses_memory(options: Namespace) -> float:
    """Full-size logits tensors' worth of memory that the losses add."""

    def losses(crop: int) -> None:
        coarse = (crop - 1) // 8 + 1
        noise = [
            torch.randn(options.batch, options.classes, coarse, coarse, device=distributed.device()) for _ in range(4)
        ]
        student = Output(noise[0].requires_grad_(), noise[1].requires_grad_(), {})
        label = torch.randint(0, options.classes, (options.batch, crop, crop), device=distributed.device())
        fine, small = Labels.of(label, steps.VOID), Labels.of(sample_labels(label, 1), steps.VOID)
        total = sum(supervised_losses(student, fine).values())
        (total + kl(student.logits, noise[2], small) + mse(student.aux, noise[3], small)).backward()

    losses(9)
    before = measure.forget_peak()
    losses(options.crop)
    extra = measure.peak_here() - before
    return extra / (options.batch * options.classes * options.crop**2 * 4 / 2**20)


def measured(kind: str, processes: int, options: Namespace, sizes: dict[str, int]) -> dict[str, float]:
    given = [part for key, value in sizes.items() for part in (f"--{key}", value)]
    command = [__file__, "--cell", kind, "--repeats", options.repeats, *given]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*launcher, *command]
    threads = max(torch.get_num_threads() // processes, 1)
    return measure.in_process(*command, environment={**os.environ, "OMP_NUM_THREADS": str(threads)})


def main() -> None:
    parser = measure.parser(__doc__, crop=473, batch=2, classes=21, repeats=3)
    lists = {"crops": "241,361,473,713", "batches": "2,4,8", "class-counts": "2,21,150", "process-counts": "1,2"}
    for name, default in lists.items():
        parser.add_argument(f"--{name}", default=default, help="default: %(default)s")
    parser.add_argument("--kinds", default="student,distillation", help="default: %(default)s")
    parser.add_argument("--cell", help="measure one cell in this process: a kind of step, or losses")
    options = parser.parse_args()
    if options.cell:
        found = losses_memory(options) if options.cell == "losses" else cell(options.cell, options)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found), flush=True)
        return
    results = {"losses_in_logits": None, "tables": {}}
    for kind in options.kinds.split(","):
        seen = {}
        for axis, name in AXES.items():
            for value in map(int, getattr(options, name).split(",")):
                sizes = {"crop": options.crop, "batch": options.batch, "classes": options.classes, "processes": 1}
                sizes[axis] = value
                if axis == "processes":
                    sizes["batch"] = max(2 * max(map(int, options.process_counts.split(","))), options.batch)
                processes, key = sizes.pop("processes"), json.dumps(sizes)
                if (key, processes) not in seen:
                    seen[key, processes] = measured(kind, processes, options, sizes)
                row = seen[key, processes]
                results["tables"].setdefault(kind, {}).setdefault(axis, {})[value] = row
                print(f"{kind:13}{axis:>10}{value:5}{row['seconds']:9.3f} s{row['peak_MiB']:8} MiB", flush=True)
    most = max(map(int, options.class_counts.split(",")))
    results["losses_in_logits"] = measure.in_process(
        __file__, "--cell", "losses", "--crop", options.crop, "--batch", options.batch, "--classes", most
    )
    print(f"the losses add {results['losses_in_logits']:.2f} full-size logits tensors at {most} classes")
    measure.report(options, results)


if __name__ == "__main__":
    measure.main(main)
