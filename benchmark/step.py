"""Seconds and memory of a training step: teacher, student and distillation, beside plainer ways, in one process.

    python benchmark/step.py [--crop 473] [--batch 2] [--classes 21] [--repeats 5] [--json FILE]
                             [--original FOLDER] [--ideas | --ways fp32,compile] [--kinds teacher,student,distillation]

Ways take turns (A B A B ...); medians and ratios are printed. The ceiling is a 3x3 convolution of 256 channels in
the same precision, timed between the turns; a step's share of it counts the operations of its convolutions only.
Peak memory is that of a fresh process for each way; on a GPU, of the tensors of each way alone.

- ours: what the script runs, with the config's precision (auto)
- fp32: the same with TRAIN.precision fp32
- plain: float32, contiguous, the teacher as loaded (though once a step and without gradients), scores at full size
- original: --original FOLDER, a checkout of PSPNet-knowledge-distillation; distillation only, 21 classes
- --ideas, instead of those: ours without one of its parts: `nn.Conv2d` (no weight gradient in chunks), `malloc`
  (glibc's default: freed memory goes back), `full-size CE` (no blocks of rows), `unfolded` (the teacher keeps its
  BatchNorm and its own blocks); on a GPU ours with `tuned` convolutions (cuDNN tries its algorithms); and the step
  with TRAIN.compile (on a CPU the student's only), after a minute or two of compiling
- --ways, instead of those: any of them by name
"""

import gc
import json
import statistics
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import measure, steps  # noqa: E402
from util import distributed  # noqa: E402

IDEAS = {"cpu": ("nn.Conv2d", "malloc", "full-size CE"), "cuda": ("tuned", "full-size CE")}


def names(kind: str, options: Namespace) -> list[str]:
    if options.ways:
        return ["ours", *options.ways.split(",")]
    if not options.ideas:
        return ["ours", "fp32", "plain", *(["original"] if options.original and kind == "distillation" else [])]
    device = distributed.device().type
    more = {"unfolded": kind == "distillation", "compile": kind == "student" or device == "cuda"}
    return ["ours", *IDEAS[device], *(name for name, has in more.items() if has)]


def compare(kind: str, options: Namespace, folder: Path) -> dict:
    """Seconds, ratio, share of the ceiling and peak MiB of each way to do `kind` of step."""
    with FlopCounterMode(display=False) as counter:
        steps.plain_step(kind, options)()
    work = counter.get_total_flops() / 1e9
    ways = steps.variants(kind, options, folder, names(kind, options))
    floor, gflop = measure.ceiling(distributed.precision("auto"))
    times = measure.turns(ways, options.repeats, floor)
    rows = measure.summary(times, "ours")
    pace = gflop / statistics.median(times["floor"])
    ways.clear()  # its networks take memory
    for name, row in rows.items():
        row["share"] = work / row["seconds"] / pace
        if distributed.device().type == "cuda":
            row["peak_MiB"] = peak_alone(kind, options, folder, name)
        else:
            row["peak_MiB"] = measure.in_process(__file__, *_again(options), "--kinds", kind, "--only", name)
    return {"GFLOP": work, "ceiling": pace, "ways": rows}


def peak_alone(kind: str, options: Namespace, folder: Path, name: str) -> int:
    """MiB at the peak of two steps, when nothing else is in memory."""
    gc.collect()
    measure.forget_peak()
    (way,) = steps.variants(kind, options, folder, [name]).values()
    with way.around():
        way.work()
        way.work()
    return measure.peak_here()


def _again(options: Namespace) -> list[str]:
    given = [part for key in ("crop", "batch", "classes") for part in (f"--{key}", getattr(options, key))]
    return given + (["--original", options.original] if options.original else [])


def main() -> None:
    parser = measure.parser(__doc__, crop=473, batch=2, classes=21, repeats=5)
    parser.add_argument("--original", type=Path, metavar="FOLDER")
    parser.add_argument("--ideas", action="store_true")
    parser.add_argument("--ways", metavar="WAY,WAY", help="only these beside ours")
    parser.add_argument("--kinds", default=",".join(steps.SCRIPTS), help="default: %(default)s")
    parser.add_argument("--only", metavar="WAY", help="two steps of one way, and its peak MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.only:
            print(json.dumps(peak_alone(options.kinds, options, Path(folder), options.only)))
            return
        results = {}
        for kind in options.kinds.split(","):
            results[kind] = row = compare(kind, options, Path(folder))
            print(f"{kind}: {row['GFLOP']:.0f} GFLOP a step, convolution ceiling {row['ceiling']:.0f} GFLOP/s")
            for name, way in row["ways"].items():
                print(
                    f"  {name:14}{way['seconds']:8.3f} s ({way['least']:.3f} to {way['most']:.3f})"
                    f"{way['ratio']:7.2f}x ours{100 * way['share']:6.0f} % of the ceiling{way['peak_MiB']:8} MiB",
                    flush=True,
                )
            measure.report(options, results)


if __name__ == "__main__":
    measure.main(main)
