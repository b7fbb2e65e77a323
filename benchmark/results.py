"""Train and test every method on every seed (plan.py), and record the scores.

    python benchmark/results.py camvid --data-root FOLDER [--out exp/results/camvid]
    python benchmark/results.py shapes [--out exp/results/shapes] [--seeds 10,11] [--jobs 8]

Scores go to benchmark/results/DATASET.json, pixel counts of each image to DATASET.npz. What is
recorded there is not run again, on any machine; what was stopped goes on. A recorded run whose
settings are no longer the plan's is named and kept; --drop takes it out, so that it runs anew.
benchmark/evidence.py makes the tables.

The teacher's outputs are cached (DISTILL.cache), so the first distillation of a seed takes longer
than the others.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark import measure, plan  # noqa: E402
from benchmark.plan import Task  # noqa: E402
from benchmark.record import TEACHER, RunRecord, Settings, locked, settings_of, without_defaults  # noqa: E402
from tool import pipeline  # noqa: E402
from tool.report import runs  # noqa: E402
from util import config, files  # noqa: E402
from util.run import errors_in_one_line  # noqa: E402

FOLDER = ROOT / "benchmark" / "results"


class Experiments:
    """The runs of one dataset under the folder `out`; pace: the recorded seconds of a step."""

    def __init__(self, dataset: str, out: Path, pace: dict[str, Any], data_root: str | None = None):
        self.dataset, self.out, self.data_root = dataset, out.resolve(), data_root
        files = {run: ROOT / pipeline.config_file(dataset, run) for run in plan.RUNS}
        epochs = {run: config.load(path).train.epochs for run, path in files.items()}
        seconds = pace["seconds a step"]
        equal_time = math.ceil(epochs["pspnet18"] * seconds["default"] / seconds["student"])
        tasks = plan.tasks(dataset, equal_time, epochs)
        self.tasks = [task._replace(epochs=task.epochs or epochs[task.run]) for task in tasks]

    def folder(self, task: Task) -> Path:
        return self.out / f"seed_{task.seed}" / task.method.replace(",", "").replace(" ", "_")

    def teacher(self, task: Task) -> Task:
        """The task that trains what teaches `task`."""
        seed = plan.teacher(self.dataset, task.seed).seed
        return next(other for other in self.tasks if (other.method, other.seed) == (task.teacher, seed))

    def run(self, task: Task) -> pipeline.Run:
        data = self.out / f"seed_{task.seed}" / "data"
        keys = {"TRAIN.save_path": self.folder(task) / "model", "TRAIN.manual_seed": task.seed}
        keys |= {"TRAIN.epochs": task.epochs, "TRAIN.pictures": 0}
        keys |= {"TRAIN.save_freq": 5, "TRAIN.keep": 1, "TRAIN.evaluate": False}  # val scores the last checkpoint only
        if self.dataset == "shapes":
            keys |= pipeline.generated(data, f"train{task.labels or ''}.txt")
        elif self.data_root:
            keys["DATA.data_root"] = self.data_root
        if plan.PER_BATCH in task.overrides:
            keys["DATA.unlabelled_list"] = data / f"list/unlabelled{task.labels}.txt"
        if task.run == "pspnet50_18":
            checkpoint = self.run(self.teacher(task)).load().test.model_path
            keys |= {"DISTILL.teacher_path": checkpoint, "DISTILL.check_images": 0, "DISTILL.cache": self.out / "cache"}
        test, file = f"test_{task.run.removeprefix('pspnet')}.py", pipeline.config_file(self.dataset, task.run)
        return pipeline.Run(task.script, test, file, keys | dict(task.overrides))

    def settings(self, task: Task) -> Settings:
        """All that decides the score: script, number of labels, keys, and the teacher's
        settings."""
        teacher = self.settings(self.teacher(task)) if task.run == "pspnet50_18" else {}
        own = {"script": task.script, "labels": task.labels, **settings_of(self.run(task).load())}
        return own | {TEACHER + key: value for key, value in teacher.items()}

    def prepare(self, task: Task) -> None:
        """Generate the images and lists of `task`, if the dataset is a generated one."""
        if self.dataset != "shapes":
            return
        data = self.out / f"seed_{task.seed}" / "data"
        pipeline.prepare(self.dataset, data, task.seed)
        if task.labels:
            lines = (data / "list/train.txt").read_text().splitlines()
            files.replace_text(data / f"list/train{task.labels}.txt", "\n".join(lines[: task.labels]) + "\n")
            images = [line.split()[0] for line in lines[task.labels :]]
            files.replace_text(data / f"list/unlabelled{task.labels}.txt", "\n".join(images) + "\n")


def entry_of(experiments: Experiments, task: Task) -> tuple[dict[str, Any], np.ndarray]:
    """What is recorded of a run that has been tested."""
    tested = runs.read(experiments.folder(task))
    counts = runs.count([tested], runs.pairs_of(tested), border=0.01)
    entry = {
        "method": task.method,
        "seed": task.seed,
        **{name: tested.metrics[name] for name in ("mIoU", "mAcc", "allAcc")},
        "epochs": task.epochs,
        "machine": measure.machine()["device"],
        "beside": {"student": task.student, "teacher": task.teacher},
        "config": {
            "file": pipeline.config_file(experiments.dataset, task.run),
            "overrides": dict(task.overrides),
            "settings": without_defaults(experiments.settings(task)),
        },
    }
    return entry, counts.pixels[0].sum(1).astype(np.int32)


def perform(experiments: Experiments, record: RunRecord, tasks: Sequence[Task], jobs: int) -> None:
    """Up to `jobs` processes at a time, teachers first. After a failure no more are started."""
    teachers = [experiments.teacher(task) for task in tasks if task.run == "pspnet50_18"]
    first = {(task.method, task.seed): task for task in (*teachers, *tasks) if task.run == "pspnet50"}
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // jobs, 1)))

    for group in (list(first.values()), [task for task in tasks if task.run != "pspnet50"]):
        for task in group:
            experiments.prepare(task)
        with ThreadPoolExecutor(jobs) as pool:
            started = {pool.submit(experiments.run(task).perform): task for task in group}
            try:
                for done in as_completed(started):
                    done.result()
                    if not record.find(started[done].method, started[done].seed):
                        record.add(*entry_of(experiments, started[done]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=plan.SEEDS)
    parser.add_argument("--data-root", help="folder of CamVid's images")
    parser.add_argument("--out", type=Path, help="default: exp/results/DATASET")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], help="only these")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--drop", action="store_true", help="drop recorded runs of other settings, and run them anew")
    arguments = parser.parse_args(argv)
    out, path = arguments.out or ROOT / "exp" / "results" / arguments.dataset, FOLDER / arguments.dataset
    with errors_in_one_line(), locked(path):
        record = RunRecord(path)
        experiments = Experiments(arguments.dataset, out, record.content["pace"], arguments.data_root)
        planned = {(task.method, task.seed): experiments.settings(task) for task in experiments.tasks}
        for entry, why in list(record.mismatches(planned)):
            end = "dropped" if arguments.drop else "kept; --drop takes it out"
            print(f"{entry['method']}, seed {entry['seed']}: {why} ({end})", flush=True)
            if arguments.drop:
                record.drop(entry)
        missing = [task for task in experiments.tasks if not record.find(task.method, task.seed)]
        perform(experiments, record, [t for t in missing if t.seed in (arguments.seeds or [t.seed])], arguments.jobs)


if __name__ == "__main__":
    main()
