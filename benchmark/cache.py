"""What DISTILL.cache saves: seconds a step of the student alone, of distillation, and of distillation from the cache.

    python benchmark/cache.py [--crop 473] [--batch 2] [--classes 21] [--steps 6] [--repeats 3] [--workers 1]
                              [--json FILE]

The scripts' own steps on batches from their own loader, in turns, the first step of each turn left out. `writing`
begins with an empty cache, `reading` finds all crops in it. The networks are random: what they know costs no time.
"""

import shutil
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import measure, pictures, steps  # noqa: E402
from util.data.loader import ResumableBatchSampler, TrainData, train_loader  # noqa: E402

WAYS = {"student": "student", "distillation": "distillation", "writing": "distillation", "reading": "distillation"}


def seconds(fit: steps.Fit, stepper: steps.Stepper, options: Namespace) -> float:
    """Mean over an epoch's steps but the first, waiting for the loader included."""
    data = TrainData(fit.cfg, 0, fit.teacher.cache if fit.teacher else None)
    for step, raw in enumerate(train_loader(data, ResumableBatchSampler(data, fit.cfg.train), options.workers)):
        stepper.step(raw, step + 1)
        if step == 0:
            start = time.perf_counter()
    stepper.means("the benchmark")  # waits for the device
    return (time.perf_counter() - start) / (options.steps - 1)


def main() -> None:
    parser = measure.parser(__doc__, crop=473, batch=2, classes=pictures.CLASSES, steps=6, repeats=3, workers=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures.make(folder, options.steps * options.batch)
        own = pictures.configuration(folder, "pspnet18").data.model_dump(exclude_none=True)
        keys = {f"DATA.{key}": own[key] for key in ("data_root", "train_list", "val_list")}
        keys |= {"TRAIN.manual_seed": 0, "TRAIN.epochs": 1}
        fits = {}
        for way, kind in WAYS.items():
            cached = {"DISTILL.cache": folder / "cache"} if way in ("writing", "reading") else {}
            fits[way] = steps.script_fit(kind, "auto", options, folder, keys | cached)
        steppers = {way: fit.stepper() for way, fit in fits.items()}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for way, fit in fits.items():
                times[way].append(seconds(fit, steppers[way], options))
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    ways = measure.summary(times, "student")
    for way, row in ways.items():
        print(f"{way:14}{row['seconds']:8.3f} s a step {row['ratio']:6.2f}x the student alone")
    crops = options.steps * options.batch
    print(f"{size / crops / 1000:.1f} KB a crop")
    measure.report(options, {"ways": ways, "bytes_a_crop": size / crops})


if __name__ == "__main__":
    measure.main(main)
