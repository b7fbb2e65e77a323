"""Images a second that the training loader gives, by number of workers, and how long the steps wait for it.

    python benchmark/speed/loading.py [--workers 1,2] [--kind distillation] [--ways ours] [--images 64] [--batches 20]
                                      [--crop 473] [--batch 16] [--classes 21] [--repeats 3] [--json FILE]

JPEGs of VOC's size (500x375, noise, 82 KB each; the dataset's mean is about 110), augmented as in
voc2012_pspnet18.yaml. The loader is timed alone once its workers are running, then `batches` steps
with the largest number of workers and with a batch from memory; all of them in alternation.
"""

import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.speed import measure, step_variants, testing
from util.data.loader import ResumableBatchSampler, TrainData, train_loader
from util.run import errors_in_one_line


def running_loader(options: Namespace, folder: Path, workers: int) -> Iterator:
    """The training loader of the images in `folder`, without end, past what its workers prepare before they start."""
    keys = {"DATA.data_root": folder, "DATA.train_list": folder / "list.txt", "TRAIN.epochs": 10**6}
    keys |= {"DATA.classes": options.classes, "TRAIN.batch_size": options.batch}
    cfg = step_variants.load("18", keys | {"TRAIN.train_h": options.crop, "TRAIN.train_w": options.crop})
    data = TrainData(cfg.data, cfg.train, seed=0)
    batches = iter(train_loader(data, ResumableBatchSampler(data), workers))
    for _ in range(3 * workers + 1):  # PyTorch prepares two a worker
        next(batches)
    return batches


def seconds(options: Namespace, batches: Iterator | None, step: step_variants.Step | None) -> float:
    """Of `batches` batches: of the loader alone, of steps that it feeds, or of steps with a batch from memory."""

    def work() -> None:
        for _ in range(options.batches):
            raw = next(batches) if batches else None
            if step:
                step(raw)

    return measure.timed(work)


def compare(options: Namespace, folder: Path) -> dict[str, Any]:
    """Each number of workers' images a second, ratio to the first; each way's seconds a step and share of waiting."""
    testing.make_images(folder, options.images, options.height, options.width)
    counts, images = [int(count) for count in options.workers.split(",")], options.batches * options.batch
    ways = options.ways.split(",") if options.ways else []
    steps = {way: step_variants.make(way, options.kind, options, folder) for way in ways}
    rates: dict[int, list[float]] = {count: [] for count in counts}
    fed, alone = ({way: [] for way in steps} for _ in range(2))
    for step in steps.values():
        step(), step()
    for _ in range(options.repeats):
        for count, found in rates.items():
            found.append(images / seconds(options, running_loader(options, folder, count), None))
        for way, step in steps.items():
            alone[way].append(seconds(options, None, step))
            fed[way].append(seconds(options, running_loader(options, folder, max(counts)), step))
    rows = {}
    for count, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates[counts[0]], strict=True))
        rows[f"{count} workers"] = {"images_a_second": statistics.median(found), "ratio": ratio}
    for way in steps:
        waiting = statistics.median(1 - a / b for a, b in zip(alone[way], fed[way], strict=True))
        rows[way] = {"images_a_second": images / statistics.median(alone[way]), "waiting": waiting}
    return {"relative_to": f"ratio: {counts[0]} workers; waiting: the steps' own time", "ways": rows}


def main() -> None:
    parser = measure.parser(
        __doc__, crop=473, batch=16, classes=21, repeats=3, images=64, batches=20, height=375, width=500
    )
    parser.add_argument("--workers", default="1,2", help="default: %(default)s")
    parser.add_argument("--kind", default="distillation", help="the steps that it feeds (default: %(default)s)")
    parser.add_argument("--ways", default="ours", help="of step_variants.py, or none: '' (default: %(default)s)")
    options = parser.parse_args()
    with errors_in_one_line(), tempfile.TemporaryDirectory() as folder:
        measure.report(options, compare(options, Path(folder)))


if __name__ == "__main__":
    main()
