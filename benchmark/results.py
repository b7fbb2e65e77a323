"""The evidence: every method on every seed, trained and tested as the six scripts do, with intervals and ratios.

    python benchmark/results.py camvid --data-root FOLDER [--out exp/results/camvid]
    python benchmark/results.py shapes [--out exp/results/shapes]

Goes on where it was stopped, and writes benchmark/results/DATASET.json after every run. The settings are those of
config/DATASET: one teacher a seed on shapes, one for all seeds on CamVid. `same time` is the student alone for as many
epochs as the default recipe's wall-clock time buys it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.evidence import summarise  # noqa: E402
from benchmark.measure import call  # noqa: E402
from util import config  # noqa: E402

NEW_LOSS = {"DISTILL.weights.kl": 0, "DISTILL.weights.aux_mse": 0}
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "original": {},
    "kl": {"DISTILL.weights.aux_mse": 0},
    "aux_mse": {"DISTILL.weights.kl": 0},
    "fitnet": {**NEW_LOSS, "DISTILL.hints": "[{layer: layer4, loss: fitnet, weight: 10}]"},
    "cwd": {**NEW_LOSS, "DISTILL.hints": "[{layer: logits, loss: cwd, weight: 3, temperature: 4}]"},
}
SEEDS = {"camvid": (0, 1, 2), "shapes": (10, 11, 12, 13, 14)}  # shapes: 0 to 2 were used for tuning its settings


class Task(NamedTuple):
    method: str
    seed: int
    train: str  # script
    run: str  # of config/DATASET/DATASET_RUN.yaml
    epochs: int | None = None  # else the config's


class Bench:
    """The runs of one dataset under `out`."""

    def __init__(self, dataset: str, out: Path, data_root: str | None):
        self.dataset, self.out, self.data_root = dataset, out, data_root

    def config_file(self, task: Task) -> str:
        return f"config/{self.dataset}/{self.dataset}_{task.run}.yaml"

    def folder(self, task: Task) -> Path:
        return self.out / f"seed_{task.seed}" / task.method.replace(" ", "_")

    def teacher(self, seed: int) -> Task:
        return Task("teacher", seed if self.dataset == "shapes" else 0, "train_50.py", "pspnet50")

    def overrides(self, task: Task) -> list[str]:
        cfg = config.load(ROOT / self.config_file(task))
        folder, epochs = self.folder(task), task.epochs or cfg.train.epochs
        keys: dict[str, Any] = {
            "TRAIN.manual_seed": task.seed,
            "TRAIN.epochs": epochs,
            "TRAIN.save_path": folder / "model",
            "TRAIN.pictures": 0,
            "TRAIN.evaluate": False,  # val is looked at once, at the end
            "TRAIN.save_freq": 5,
            "TRAIN.keep": 1,
            "TEST.model_path": folder / "model" / f"train_epoch_{epochs}.pth",
            "TEST.save_folder": folder / "result",
        }
        if self.dataset == "shapes":
            data = self.out / f"seed_{task.seed}" / "data"
            keys |= {"DATA.data_root": data, "DATA.train_list": data / "list/train.txt"}
            keys |= {"DATA.val_list": data / "list/val.txt", "TEST.test_list": data / "list/val.txt"}
        elif self.data_root:
            keys["DATA.data_root"] = self.data_root
        if cfg.distill:
            teacher = self.teacher(task.seed)
            last = config.load(ROOT / self.config_file(teacher)).train.epochs
            keys |= {"DISTILL.teacher_path": self.folder(teacher) / "model" / f"train_epoch_{last}.pth"}
            keys |= {"DISTILL.check_images": 0} | METHODS[task.method]
        return [str(part) for pair in keys.items() for part in pair]

    def tasks(self) -> Iterator[Task]:
        """In the order in which they say most soonest; `same time` needs the others' seconds."""
        distil = dict.fromkeys(METHODS, "train_50_18.py") | {"original": "benchmark/train_original.py"}
        for seed in SEEDS[self.dataset]:
            yield self.teacher(seed)
            yield Task("student", seed, "train_18.py", "pspnet18")
            yield Task("default", seed, distil["default"], "pspnet50_18")
        first, *others = SEEDS[self.dataset]
        for seed in (first, *(others if self.dataset == "shapes" else ())):
            for method in METHODS:
                if method != "default":
                    yield Task(method, seed, distil[method], "pspnet50_18")
        for seed in SEEDS[self.dataset]:
            student, default = (self.result(Task(m, seed, "", "pspnet18")) for m in ("student", "default"))
            epochs = round(student["epochs"] * default["seconds"] / student["seconds"])
            yield Task("same time", seed, "train_18.py", "pspnet18", epochs)

    def result(self, task: Task) -> dict[str, Any] | None:
        path = self.folder(task) / "run.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def perform(self, task: Task) -> dict[str, Any]:
        """Train and test, unless that is done -> the run's entry in the JSON."""
        if found := self.result(task):
            return found
        if self.dataset == "shapes" and not (self.out / f"seed_{task.seed}" / "data/list/val.txt").exists():
            data = self.out / f"seed_{task.seed}" / "data"
            call("dataset/shapes/prepare.py", "--seed", str(task.seed), "--out", str(data))
        arguments = ["--config", self.config_file(task), *self.overrides(task)]
        clock = self.folder(task) / "seconds.json"  # of training, over all its starts
        before = json.loads(clock.read_text()) if clock.is_file() else 0.0
        start = time.monotonic()
        try:
            call(task.train, *arguments)
        finally:
            clock.parent.mkdir(parents=True, exist_ok=True)
            clock.write_text(json.dumps(before + time.monotonic() - start))
        call("test_18.py" if task.run != "pspnet50" else "test_50.py", *arguments)
        metrics = json.loads((self.folder(task) / "result/metrics.json").read_text())
        history = (self.folder(task) / "model/metrics.jsonl").read_text().splitlines()
        entry = {
            "method": task.method,
            "seed": task.seed,
            **{name: metrics[name] for name in ("mIoU", "mAcc", "allAcc")},
            "epochs": len(history),
            "seconds": round(json.loads(clock.read_text()), 1),
            "config": {"file": self.config_file(task), "overrides": METHODS.get(task.method, {})},
        }
        (self.folder(task) / "run.json").write_text(json.dumps(entry, indent=1) + "\n")
        return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=SEEDS)
    parser.add_argument("--data-root", help="folder of CamVid's images")
    parser.add_argument("--out", type=Path, help="default: exp/results/DATASET")
    arguments = parser.parse_args()
    out = (arguments.out or ROOT / "exp" / "results" / arguments.dataset).resolve()
    bench, entries = Bench(arguments.dataset, out, arguments.data_root), []
    for task in bench.tasks():
        entry = bench.perform(task)
        if entry not in entries:  # the teacher serves several seeds
            entries.append(entry)
            folders = {(e["method"], e["seed"]): bench.folder(Task(e["method"], e["seed"], "", "")) for e in entries}
            path = ROOT / "benchmark" / "results" / f"{arguments.dataset}.json"
            path.parent.mkdir(exist_ok=True)
            content = {"runs": entries, "summary": summarise(arguments.dataset, entries, folders)}
            path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
