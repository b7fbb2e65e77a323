"""Seconds and memory of a step of teacher, student and distillation, beside plainer ways.

    python benchmark/speed/step.py [--crop 473] [--batch 2] [--classes 21] [--repeats 5] [--json FILE]
                                   [--ways fp32,plain,compile] [--kinds teacher,student,distillation]

- ours: what the script runs, in the config's precision (auto); distillation by kl and aux_mse
- fp32: the same with TRAIN.precision fp32
- plain: PyTorch as one would write it first: float32, contiguous, cross entropy at full size
- tf32: the same, convolutions rounded to TF32 (GPUs)
- compile, and the other CHANGES of step_variants.py, joined by +: ours with TRAIN.compile, ...

The ways alternate in one process (A B A B); medians and ratios are printed. The share is of the
throughput of a 3x3 convolution of 256 channels in the same precision, timed after each step; it
counts the step's convolutions only. Peak memory is that of a fresh process for each way.
"""

import json
import statistics
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.speed import measure, step_variants
from util import distributed
from util.run import errors_in_one_line


def compare(kind: str, names: list[str], options: Namespace, folder: Path) -> dict:
    """Each way's seconds, ratio to the first, share of the convolution's throughput, peak MiB."""
    with FlopCounterMode(display=False) as counter:
        step_variants.plain_step(kind, options)()
    work = counter.get_total_flops() / 1e9
    ways = {name: step_variants.make(name, kind, options, folder) for name in dict.fromkeys(names)}
    convolution, gflop = measure.convolution_throughput(distributed.precision("auto"))
    times = measure.time_alternately(ways, options.repeats, convolution)
    throughput = gflop / statistics.median(times["reference"])
    ways.clear()  # the networks take memory
    rows = measure.summary(times, names[0])
    for name, row in rows.items():
        row["share"] = work / row["seconds"] / throughput
        row["peak_MiB"] = measure.peak_of(__file__, options, "--kinds", kind, "--only", name)
    return {"GFLOP": work, "ceiling": throughput, "ways": rows}


def main() -> None:
    parser = measure.parser(__doc__, crop=473, batch=2, classes=21, repeats=5)
    parser.add_argument("--ways", default="fp32,plain", metavar="WAY,WAY", help="beside ours (default: %(default)s)")
    parser.add_argument("--kinds", default=",".join(step_variants.SCRIPTS), help="default: %(default)s")
    parser.add_argument("--only", metavar="WAY", help="two steps of one way, and its peak MiB")
    options = parser.parse_args()
    with errors_in_one_line(), tempfile.TemporaryDirectory() as folder:
        if options.only:
            work = step_variants.make(options.only, options.kinds, options, Path(folder))
            work(), work()
            print(json.dumps(measure.peak()))
            return
        results = {}
        for kind in options.kinds.split(","):
            results[kind] = compare(kind, ["ours", *options.ways.split(",")], options, Path(folder))
            measure.report(options, results)


if __name__ == "__main__":
    main()
