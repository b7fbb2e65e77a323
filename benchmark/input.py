"""Images a second that one core turns from JPEG and PNG into a training batch; and whether the loader feeds the step.

    python benchmark/input.py [--images 32] [--height 375] [--width 500] [--crop 473] [--batch 4] [--repeats 7]
                              [--steps 12] [--workers 1] [--semseg FOLDER] [--json FILE]

- ours: TrainData and its collating: what a worker of the loader does
- decoding: only reading image and label, the floor
- semseg: --semseg FOLDER, its SemData, transforms and PyTorch's collating

Ways take turns over the same files, on one thread. With --steps above 3, the student's step then runs on batches from
the loader with --workers, and the share of the time that it waits for them is printed: the first two steps left out.
"""

import contextlib
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import measure, pictures, steps, theirs  # noqa: E402
from util.config import Config  # noqa: E402
from util.data.loader import ResumableBatchSampler, TrainData, collate, train_loader  # noqa: E402


def ways(options: Namespace, cfg: Config) -> dict[str, Callable[[], None]]:
    data = TrainData(cfg, seed=0)
    batches = [range(i, i + options.batch) for i in range(0, options.images - options.batch + 1, options.batch)]

    def ours() -> None:
        for batch in batches:
            collate([data[(0, index)] for index in batch])

    def decoding() -> None:
        for batch in batches:
            for index in batch:
                cv2.imread(str(data.pairs[index].image), cv2.IMREAD_COLOR)
                cv2.imread(str(data.pairs[index].label), cv2.IMREAD_UNCHANGED)

    made = {"ours": ours, "decoding": decoding}
    if options.semseg:
        samples = theirs.semseg_samples(options.semseg, cfg)

        def semseg() -> None:
            for batch in batches:
                default_collate([samples[index] for index in batch])

        made["semseg"] = semseg
    return made


def waiting(options: Namespace, cfg: Config) -> float:
    """The share of the student's training that goes into waiting for the loader."""
    size = Namespace(crop=options.crop, batch=options.batch, classes=pictures.CLASSES)
    stepper = steps.script_stepper("student", "auto", size, Path(), {})
    data = TrainData(cfg, seed=0)
    sampler = ResumableBatchSampler(data, cfg.train)
    batches, waits, all_ = iter(train_loader(data, sampler, options.workers)), [], []
    for step in range(options.steps):
        start = time.perf_counter()
        raw = next(batches)
        waits.append(time.perf_counter() - start)
        stepper.step(raw, step)
        all_.append(time.perf_counter() - start)
    return sum(waits[2:]) / sum(all_[2:])


def main() -> None:
    parser = measure.parser(
        __doc__, images=32, height=375, width=500, crop=473, batch=4, repeats=7, steps=12, workers=1
    )  # fmt: skip
    parser.add_argument("--semseg", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        pictures.make(Path(name), options.images, options.height, options.width)
        sizes = [part for key in "hw" for part in (f"TRAIN.train_{key}", options.crop)]
        cfg = pictures.configuration(Path(name), "pspnet18", "TRAIN.batch_size", options.batch, *sizes)
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        variants = {k: measure.Variant(v, contextlib.nullcontext) for k, v in ways(options, cfg).items()}
        rows = measure.summary(measure.turns(variants, options.repeats), "ours")
        torch.set_num_threads(threads)
        results = {"ways": rows}
        for name, row in rows.items():
            row["images_a_second"] = options.images // options.batch * options.batch / row["seconds"]
            print(f"{name:9}{row['images_a_second']:8.1f} images/s a core{row['ratio']:7.2f}x ours' time")
        if options.steps > 3:
            results["wait"] = waiting(options, cfg)
            print(f"waiting for data: {100 * results['wait']:.2f} % of the student's step, {options.workers} workers")
    measure.report(options, results)


if __name__ == "__main__":
    measure.main(main)
