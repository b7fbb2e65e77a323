"""From a task of the plan to a run: its config, its folder, and what is recorded of it."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import plan
from benchmark.plan import Task
from benchmark.record import TEACHER, Settings, settings_of, without_defaults
from benchmark.speed import measure
from tool import pipeline
from tool.report import runs
from util import config, files
from util.teachers import sources

ROOT = Path(__file__).resolve().parent.parent


class Experiments:
    """The runs of one dataset under the folder `out`; pace: the recorded seconds of a step."""

    def __init__(self, dataset: str, out: Path, pace: dict[str, Any], data_root: str | None = None):
        self.dataset, self.out, self.data_root = dataset, out.resolve(), data_root
        epochs = config_epochs(dataset)
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

    def data(self, task: Task) -> pipeline.Overrides:
        """The keys that name what `task` trains and is tested on."""
        folder = self.out / f"seed_{task.seed}" / "data"
        keys: pipeline.Overrides = {}
        if self.dataset == "shapes":
            keys |= pipeline.generated(folder, f"train{task.labels or ''}.txt")
        elif self.data_root:
            keys["DATA.data_root"] = self.data_root
        return keys

    def run(self, task: Task) -> pipeline.Run:
        keys = {"TRAIN.save_path": self.folder(task) / "model", "TRAIN.manual_seed": task.seed}
        keys |= {"TRAIN.epochs": task.epochs, "TRAIN.pictures": 0}
        keys |= {"TRAIN.save_freq": 5, "TRAIN.keep": 1, "TRAIN.evaluate": False}  # val scores the last checkpoint only
        keys |= self.data(task)
        if task.run == "pspnet50_18":
            checkpoint = self.run(self.teacher(task)).load().test.model_path
            keys |= {"DISTILL.teacher_path": checkpoint, "DISTILL.check_images": 0, "DISTILL.cache": self.out / "cache"}
        test, file = f"test_{task.run.removeprefix('pspnet')}.py", pipeline.config_file(self.dataset, task.run)
        return pipeline.Run(task.script, test, file, keys | dict(task.overrides))

    def settings(self, task: Task) -> Settings:
        """All that decides the score: script, images, keys, and the teacher's settings."""
        teacher = self.settings(self.teacher(task)) if task.run == "pspnet50_18" else {}
        own = {"script": task.script, "labels": task.labels, "images": task.images}
        own |= settings_of(self.run(task).load())
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

    def teacher_file(self, task: Task) -> dict[str, str]:
        """A digest of the checkpoint that taught `task`: one trained anew, on another machine, is another teacher."""
        distill = self.run(task).load().distill
        digest = distill and sources.digest(distill.teachers)
        return {"teacher_file": digest[:12]} if digest else {}

    def entry(self, task: Task) -> tuple[dict[str, Any], np.ndarray]:
        """What is recorded of a run that has been tested."""
        scores, pixels = scored(runs.read(self.folder(task)))
        entry = {
            "method": task.method,
            "seed": task.seed,
            **scores,
            "epochs": task.epochs,
            "beside": {"student": task.student, "teacher": task.teacher, **self.teacher_file(task)},
            "config": {
                "file": pipeline.config_file(self.dataset, task.run),
                "overrides": dict(task.overrides),
                "settings": without_defaults(self.settings(task)),
            },
        }
        return entry, pixels


def scored(tested: runs.Run) -> tuple[dict[str, Any], np.ndarray]:
    """Scores of a tested run and this machine, and pixel counts (images, 3 kinds, classes) as in runs.Counts."""
    counts = runs.count([tested], runs.pairs_of(tested), border=0.01)
    scores = {name: tested.metrics[name] for name in ("mIoU", "mAcc", "allAcc")}
    return {**scores, "machine": measure.machine()["device"]}, counts.pixels[0].sum(1).astype(np.int32)


def config_epochs(dataset: str) -> dict[str, int]:
    """The epochs of each of plan.RUNS by the dataset's config files."""
    return {run: config.load(ROOT / pipeline.config_file(dataset, run)).train.epochs for run in plan.RUNS}
