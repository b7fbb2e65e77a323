"""Seconds a training step: teacher, student and distillation, this project's way beside plainer ones, in one process.

    python benchmark/step.py [--crop 473] [--batch 2] [--classes 21] [--repeats 5] [--json FILE]

Variants take turns (A B A B ...), and medians and ratios are printed. The ceiling is a 3x3 convolution of 256 channels
in the same precision, measured between the turns; a step's share of it counts the operations of convolutions only.

- ours: TRAIN.precision auto, channels last, the teacher folded and in that precision
- nn.Conv2d: the same without model/conv.py's weight gradient in chunks (CPU)
- malloc: the same with glibc returning freed memory to the kernel, its default (CPU)
- plain: float32, contiguous, the teacher as loaded (but once a step, and without gradients)
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model import conv  # noqa: E402
from model.distill.features import mse  # noqa: E402
from model.distill.logits import kl  # noqa: E402
from model.loss import Labels, sample, supervised  # noqa: E402
from model.pspnet import PSPNet  # noqa: E402
from util import run  # noqa: E402

VARIANTS = ("ours", "nn.Conv2d", "malloc", "plain")
STEPS = {"teacher": (50, None), "student": (18, None), "distillation": (18, 50)}
VOID = 255


def make_step(kind: str, plain: bool, size: argparse.Namespace) -> Callable[[], None]:
    """A function that does one step on a fixed random batch: forward, losses, backward, SGD."""
    torch.manual_seed(0)
    device, layers, teacher_layers = run.device(), *STEPS[kind]
    dtype = torch.float32 if plain else run.precision("auto")
    layout = torch.contiguous_format if plain else torch.channels_last
    net = PSPNet(layers, size.classes).to(device, memory_format=layout).train()
    teacher = None
    if teacher_layers:
        teacher = PSPNet(teacher_layers, size.classes).to(device).eval().requires_grad_(False)
        teacher = teacher if plain else teacher.freeze(dtype)
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=not plain)
    image = torch.randn(size.batch, 3, size.crop, size.crop, device=device).to(memory_format=layout)
    label = torch.randint(0, size.classes, (size.batch, size.crop, size.crop), device=device)
    fine, coarse = Labels.of(label, VOID), Labels.of(sample(label, 1), VOID)

    def step() -> None:
        with run.autocast(dtype):
            out = net(image)
            loss = sum(supervised(out, fine).values())
            if teacher:
                with torch.no_grad():
                    target = teacher(image.to(dtype))
                loss = loss + kl(out.logits, target.logits, coarse) + mse(out.aux, target.aux, coarse)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    return step


def timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    if run.device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_ceiling() -> tuple[Callable[[], None], float]:
    """A convolution at the hardware's pace, and its GFLOP."""
    dtype, device = run.precision("auto"), run.device()
    x = torch.randn(8, 256, 60, 60, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def convolve() -> None:
        for _ in range(4):
            F.conv2d(x, weight, padding=1)

    return convolve, 4 * 2 * 8 * 60 * 60 * 256 * 256 * 9 / 1e9


def measure(kind: str, size: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each variant of a step, its GFLOP, and the ceiling in GFLOP/s."""
    steps = {name: make_step(kind, name == "plain", size) for name in ("ours", "plain")}
    with FlopCounterMode(display=False) as counter:
        steps["plain"]()
    ceiling, gflop = make_ceiling()
    times: dict[str, list[float]] = {name: [] for name in (*VARIANTS, "ceiling")}
    chunk = conv.CHUNK
    for turn in range(size.repeats + 1):  # the first turn warms up
        for name in VARIANTS:
            conv.CHUNK = chunk if name != "nn.Conv2d" else 1 << 30
            run.keep_freed_memory(name not in ("malloc", "plain"))
            step = steps["plain" if name == "plain" else "ours"]
            step()  # settle after the change
            seconds, floor = timed(step), timed(ceiling)
            if turn:
                times[name].append(seconds)
                times["ceiling"].append(floor)
    conv.CHUNK = chunk
    result = {name: statistics.median(values) for name, values in times.items() if name != "ceiling"}
    floor = gflop / statistics.median(times["ceiling"])
    work = counter.get_total_flops() / 1e9
    return {**result, "GFLOP": work, "ceiling GFLOP/s": floor, "share of ceiling": work / result["ours"] / floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("crop", 473), ("batch", 2), ("classes", 21), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--json", type=Path)
    size = parser.parse_args()
    print(f"{run.device().type}, {torch.get_num_threads()} threads, {run.precision('auto')}, crop {size.crop}, "
          f"batch {size.batch}, {size.classes} classes, seconds a step (and times ours)")  # fmt: skip
    print(f"{'':14}" + "".join(f"{name:>18}" for name in VARIANTS) + "   share of ceiling")
    results = {}
    for kind in STEPS:
        results[kind] = r = measure(kind, size)
        cells = "".join(f"{r[name]:10.3f} ({r[name] / r['ours']:4.2f}x)" for name in VARIANTS)
        print(
            f"{kind:14}{cells}   {100 * r['share of ceiling']:.0f} % of {r['ceiling GFLOP/s']:.0f} GFLOP/s", flush=True
        )
    if size.json:
        size.json.write_text(json.dumps({"arguments": {k: v for k, v in vars(size).items() if k != "json"},
                                         "results": results}, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
