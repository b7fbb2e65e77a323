"""The evidence: every method on every seed, trained and tested as the six scripts do, with intervals and ratios.

    python benchmark/results.py camvid --data-root FOLDER [--out exp/results/camvid]
    python benchmark/results.py shapes [--out exp/results/shapes] [--first 10] [--jobs 8]

What is run stands in plan.py, the settings in config/DATASET. Goes on where it was stopped: a run whose entry in
benchmark/results/DATASET.json has the same settings is done, and is not made again on another machine; its pixel
counts, of which the intervals are drawn, lie beside in DATASET.npz. Both are written after every run; entries of other
settings, and of runs that plan.py no longer has, are dropped at the start. One process at a time may write a record.

The teacher's outputs are kept (DISTILL.cache), so the first distillation of a seed takes longer than the others. A
step's time, without that, is measured first, for the student alone and the default recipe in turns: leave the machine
alone in the first minutes. It is kept as `pace`; take it out of the JSON to have it measured anew. The runs themselves
may have company, --jobs of them, and their `seconds`, of the last start, then count it. A large GPU has room for
several of these small networks.
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark import evidence, measure, plan  # noqa: E402
from benchmark.plan import Task  # noqa: E402
from model.pspnet import PSPNet  # noqa: E402
from tool.report import runs  # noqa: E402
from util import config, files  # noqa: E402
from util.train.resume import MAY_CHANGE_ON_RESUME  # noqa: E402

MARK = "settings"  # file in a run's folder: with what settings it was begun


class Bench:
    """The runs of one dataset under `out`, and their entries in `record`.json."""

    def __init__(self, dataset: str, out: Path, data_root: str | None, record: Path):
        self.dataset, self.out, self.data_root, self.record = dataset, out, data_root, record
        self.content: dict[str, Any] = {"pace": None, "runs": []}
        self.pixels: dict[str, np.ndarray] = {}
        self.entering = threading.Lock()
        self.making: dict[Path, threading.Lock] = {}
        if record.with_suffix(".json").is_file():
            self.content = json.loads(record.with_suffix(".json").read_text())
            with np.load(record.with_suffix(".npz")) as saved:
                self.pixels = dict(saved)

    def config_file(self, run: str) -> str:
        return f"config/{self.dataset}/{self.dataset}_{run}.yaml"

    @cached_property
    def epochs(self) -> dict[str, int]:
        """Of each run's config."""
        return {run: config.load(ROOT / self.config_file(run)).train.epochs for run in plan.RUNS}

    def epochs_of(self, task: Task) -> int:
        return task.epochs or self.epochs[task.run]

    def folder(self, seed: int, method: str) -> Path:
        return self.out / f"seed_{seed}" / method.replace(",", "").replace(" ", "_")

    def checkpoint(self, task: Task) -> Path:
        return self.folder(task.seed, task.method) / "model" / f"train_epoch_{self.epochs_of(task)}.pth"

    def teacher(self, task: Task) -> Task:
        """The task that makes what teaches `task`."""
        made = plan.teacher(self.dataset, task.seed)
        if task.teacher == made.method:
            return made
        everything = plan.tasks(self.dataset, 1, self.epochs)
        return next(other for other in everything if (other.method, other.seed) == (task.teacher, task.seed))

    def overrides(self, task: Task) -> list[str]:
        folder = self.folder(task.seed, task.method)
        keys: dict[str, Any] = {
            "TRAIN.manual_seed": task.seed,
            "TRAIN.epochs": self.epochs_of(task),
            "TRAIN.save_path": folder / "model",
            "TRAIN.pictures": 0,
            "TRAIN.evaluate": False,  # val is looked at once, at the end
            "TRAIN.save_freq": 5,
            "TRAIN.keep": 1,
            "TEST.model_path": self.checkpoint(task),
            "TEST.save_folder": folder / "result",
        }
        if self.dataset == "shapes":
            data = self.out / f"seed_{task.seed}" / "data"
            keys |= {"DATA.data_root": data, "DATA.val_list": data / "list/val.txt"}
            keys |= {"DATA.train_list": data / f"list/train{task.labels or ''}.txt"}
            keys |= {"TEST.test_list": data / "list/val.txt"}
        elif self.data_root:
            keys["DATA.data_root"] = self.data_root
        if task.run == "pspnet50_18":
            keys |= {"DISTILL.teacher_path": self.checkpoint(self.teacher(task)), "DISTILL.check_images": 0}
            keys |= {"DISTILL.cache": self.out / "cache"}  # one seed's methods see the same crops
        return [str(part) for pair in (keys | dict(task.overrides)).items() for part in pair]

    def settings(self, task: Task) -> str:
        """A digest of all that decides what is learned: keys of the config file and the overrides, labels, teacher."""
        tree = config.load(ROOT / self.config_file(task.run), self.overrides(task)).model_dump(by_alias=True)
        decisive = [
            {
                key: value
                for key, value in tree[section].items()
                if key not in MAY_CHANGE_ON_RESUME[section] | {"teacher_path"}
            }
            for section in ("DATA", "TRAIN", "DISTILL")
            if tree[section]
        ]
        teacher = self.settings(self.teacher(task)) if tree["DISTILL"] else None
        return _digest(task.script, decisive, task.labels, teacher)

    def scoring(self, task: Task) -> str:
        """A digest of all that decides how it is scored."""
        test = config.load(ROOT / self.config_file(task.run), self.overrides(task)).test
        return _digest(test.base_size, test.test_h, test.test_w, test.scales, test.flip, test.mode, test.precision)

    def find(self, task: Task) -> dict[str, Any] | None:
        for entry in self.content["runs"]:
            if (entry["method"], entry["seed"]) == (task.method, task.seed):
                made = entry["config"]["digest"], entry["config"]["scoring"]
                return entry if made == (self.settings(task), self.scoring(task)) else None
        return None

    def alone(self, folder: Path) -> threading.Lock:
        """One thread at a time makes what `folder` needs."""
        with self.entering:
            return self.making.setdefault(folder, threading.Lock())

    def prepare(self, task: Task) -> None:
        """The images that `task` needs, where they are generated, and its teacher."""
        data = self.out / f"seed_{task.seed}" / "data"
        with self.alone(data):
            if self.dataset == "shapes" and not (data / "list/val.txt").exists():
                measure.call("dataset/shapes/prepare.py", "--seed", str(task.seed), "--out", str(data))
            if task.labels:
                lines = (data / "list/train.txt").read_text().splitlines(keepends=True)
                files.replace_text(data / f"list/train{task.labels}.txt", "".join(lines[: task.labels]))
        if task.run == "pspnet50_18":
            teacher = self.teacher(task)
            with self.alone(self.folder(teacher.seed, teacher.method)):
                if not (self.checkpoint(teacher).is_file() and self.is_of(teacher)):
                    self.train(teacher)  # its scores may be known from another machine

    def is_of(self, task: Task) -> bool:
        """Whether the folder of `task` was made with its settings."""
        mark = self.folder(task.seed, task.method) / MARK
        return mark.is_file() and mark.read_text() == self.settings(task)

    def train(self, task: Task) -> list[str]:
        """Train what prepare() has prepared -> the arguments, which test_*.py takes, too."""
        if not self.is_of(task):  # training would refuse to go on from what is there
            folder = self.folder(task.seed, task.method)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / MARK).write_text(self.settings(task))
        arguments = ["--config", self.config_file(task.run), *self.overrides(task)]
        measure.call(task.script, *arguments)
        return arguments

    def perform(self, task: Task) -> None:
        """Train, test and enter in the record, unless it is there."""
        if self.find(task):
            return
        self.prepare(task)
        folder, start = self.folder(task.seed, task.method), time.monotonic()
        digests = {"digest": self.settings(task), "scoring": self.scoring(task)}  # before someone edits the YAML
        arguments = self.train(task)
        seconds = time.monotonic() - start
        measure.call("test_50.py" if task.run == "pspnet50" else "test_18.py", *arguments)
        tested = runs.read(folder)
        entry = {
            "method": task.method,
            "seed": task.seed,
            **{name: tested.metrics[name] for name in ("mIoU", "mAcc", "allAcc")},
            "epochs": self.epochs_of(task),
            "seconds": round(seconds, 1),
            "machine": measure.machine()["device"],
            "beside": {"student": task.student, "teacher": task.teacher},
            "config": {
                "file": self.config_file(task.run),
                "overrides": dict(task.overrides) | ({"labels": task.labels} if task.labels else {}),
                **digests,
            },
        }
        counts = runs.count([tested], runs.pairs_of(tested), border=0.01)
        with self.entering:
            others = [e for e in self.content["runs"] if (e["method"], e["seed"]) != (task.method, task.seed)]
            self.content["runs"] = [*others, entry]
            self.pixels[f"{task.method} {task.seed}"] = counts.pixels[0].sum(1).astype(np.int32)
            self.write()

    def perform_all(self, tasks: Sequence[Task], jobs: int) -> None:
        """Up to `jobs` at a time. A failure lets those that run end, and starts no others."""
        if jobs > 1:  # those that others wait for first, so that few wait; then the longest, so that none is left over
            tasks = sorted(tasks, key=lambda task: (task.run == "pspnet50_18", -self.epochs_of(task)))
            os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // jobs, 1)))
        started: dict[tuple[str, int], Future] = {}
        failed = threading.Event()

        def perform(task: Task, teacher: Future | None) -> None:
            try:
                if teacher:
                    teacher.result()
                if not failed.is_set():
                    self.perform(task)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(jobs) as pool:
            for task in tasks:
                teacher = self.teacher(task) if task.run == "pspnet50_18" else None
                before = started.get((teacher.method, teacher.seed)) if teacher else None
                started[task.method, task.seed] = pool.submit(perform, task, before)
            try:
                for done in as_completed(started.values()):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def drop_stale(self, tasks: Sequence[Task]) -> None:
        """Take out entries of other settings than the tasks' now, and of runs that are not among them."""
        valid = [entry for task in tasks if (entry := self.find(task))]
        self.content["runs"] = valid
        names = {f"{entry['method']} {entry['seed']}" for entry in valid}
        self.pixels = {name: pixels for name, pixels in self.pixels.items() if name in names}

    def write(self) -> None:
        for name, seeds in (("summary", plan.SEEDS), ("dependence", plan.DEPENDENCE_SEEDS)):
            entries = [entry for entry in self.content["runs"] if entry["seed"] in seeds[self.dataset]]
            self.content[name] = evidence.summarise(self.dataset, entries, self.pixels)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(self.record.with_suffix(".npz")) as file:
            np.savez_compressed(file, **self.pixels)
        files.replace_text(self.record.with_suffix(".json"), json.dumps(self.content, indent=1) + "\n")

    def same_time(self) -> int:
        """Epochs of the student alone that take at least the default recipe's time, by this record's pace."""
        seed, epochs = plan.SEEDS[self.dataset][0], self.epochs["pspnet18"]
        if not self.content["pace"]:
            alone = Task("student", seed, "train_18.py", "pspnet18", epochs=1)
            ways = {"student": alone, "default": plan.distilled("default", seed, epochs=1)}
            self.prepare(alone)
            turns = [{name: self.step_seconds(task) for name, task in ways.items()} for _ in range(2)]
            seconds = {name: statistics.mean(turn[name] for turn in turns) for name in ways}
            self.content["pace"] = {"seconds a step": seconds, "machine": measure.machine()}
            self.write()
        pace = self.content["pace"]["seconds a step"]
        return math.ceil(epochs * pace["default"] / pace["student"])

    def step_seconds(self, task: Task) -> float:
        """Over one epoch in a folder of its own, by the training's own clock: without starting and saving."""
        folder = self.out / "pace"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        cfg = config.load(ROOT / self.config_file(task.run), self.overrides(task))
        keys = ["TRAIN.save_path", str(folder / "model")]
        if cfg.distill:  # a teacher's step takes as long with random weights
            random = PSPNet(cfg.distill.teacher_layers, cfg.data.classes).state_dict()
            torch.save({"state_dict": random}, folder / "teacher.pth")
            keys += ["DISTILL.teacher_path", str(folder / "teacher.pth"), "DISTILL.cache", ""]
        arguments = ["--config", self.config_file(task.run), *self.overrides(task), *keys]
        done = subprocess.run([sys.executable, task.script, *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr.strip())
        return cfg.train.batch_size / float(re.findall(r"([\d.]+) images/s", done.stdout)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=plan.SEEDS)
    parser.add_argument("--data-root", help="folder of CamVid's images")
    parser.add_argument("--out", type=Path, help="default: exp/results/DATASET")
    parser.add_argument("--first", type=int, metavar="N", help="stop after N runs that were not there")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], help="only these")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    arguments = parser.parse_args()
    out = (arguments.out or ROOT / "exp" / "results" / arguments.dataset).resolve()
    record = ROOT / "benchmark" / "results" / arguments.dataset
    record.parent.mkdir(parents=True, exist_ok=True)
    with (record.parent / f".{arguments.dataset}.lock").open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"error: another process writes {record}.json; --jobs N makes several runs at a time")
        bench = Bench(arguments.dataset, out, arguments.data_root, record)
        tasks = list(plan.tasks(arguments.dataset, bench.same_time(), bench.epochs))
        bench.drop_stale(tasks)
        seeds = arguments.seeds or {task.seed for task in tasks}
        missing = [task for task in tasks if task.seed in seeds and not bench.find(task)]
        bench.perform_all(missing[: arguments.first], arguments.jobs)


def _digest(*decisive: object) -> str:
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:12]


if __name__ == "__main__":
    main()
