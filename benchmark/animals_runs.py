"""The runs on animals: what benchmark/results.py makes of the tasks in animals.py."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmark.animals import EPOCHS, PER_BATCH, PLANNED, SEEDS, TUNING_SEED, Score, image_lists, ordered, scores_of
from benchmark.experiments import ROOT, Experiments
from benchmark.plan import Overrides, Task
from benchmark.record import RunRecord, Settings
from util import files
from util.errors import UserError


class Records:
    """The record of tuning and that of the final runs, as one: seeds tell them apart."""

    def __init__(self, folder: Path):
        self.tuned, self.final = RunRecord(folder / "animals_tuning"), RunRecord(folder / "animals")

    def of(self, seed: int) -> RunRecord:
        return self.tuned if seed == TUNING_SEED else self.final

    def find(self, method: str, seed: int) -> Mapping | None:
        """The entry of a run; one that failed has one, too, so that it is not run again."""
        failed = seed == TUNING_SEED and method in self.tuned.content["failed"]
        return {"method": method, "mIoU": 0.0} if failed else self.of(seed).find(method, seed)

    def add(self, entry: Mapping, pixels: np.ndarray) -> None:
        self.of(entry["seed"]).add(entry, pixels)

    def drop(self, entry: Mapping) -> None:
        self.of(entry["seed"]).drop(entry)

    def mismatches(self, planned: Mapping) -> Iterator[tuple[Mapping, str]]:
        for record in (self.tuned, self.final):
            yield from record.mismatches(planned)

    def failed(self, method: str, seed: int) -> bool:
        """Take note that a tuning run failed. False where that is no result: of a final run, or of the first one."""
        if seed != TUNING_SEED or not self.tuned.content["runs"]:
            return False
        self.tuned.content["failed"].append(method)
        self.tuned.write()
        return True


class Animals(Experiments):
    """The runs on animals. pretrained: folder of resnet18.pth and resnet50.pth, and `weights` what they are."""

    def __init__(
        self,
        out: Path,
        records: Records,
        data_root: str | None = None,
        pretrained: Path | None = None,
        weights: str = "",
    ):
        """Raises UserError for a `pretrained` without those files or without words for them."""
        self.dataset, self.out, self.records = "animals", out.resolve(), records
        self.data_root, self.epochs = data_root or "dataset/animals", EPOCHS
        self.pretrained, self.weights = pretrained and pretrained.resolve(), weights
        self.planned: tuple[Score | None, list[Task]] = None, []
        if bool(pretrained) != bool(weights):
            raise UserError("--pretrained FOLDER and --weights TEXT go together: the tables say what the weights are")
        for depth in (18, 50) if pretrained else ():
            if not (pretrained / f"resnet{depth}.pth").is_file():
                raise UserError(
                    f"{pretrained}/resnet{depth}.pth does not exist; --pretrained names the folder that holds it"
                )

    @property
    def tasks(self) -> list[Task]:
        """As far as they are known, the most important first."""
        if self.planned[0] != (score := scores_of(self.records.tuned.content)):
            found = [task._replace(epochs=task.epochs or self.epochs[task.run]) for task in ordered(score, self.epochs)]
            self.planned = score, found
        return self.planned[1]

    def teacher(self, task: Task) -> Task:
        seed = TUNING_SEED if task.seed == TUNING_SEED else SEEDS[0]
        return next(other for other in self.tasks if (other.method, other.seed) == (task.teacher, seed))

    def data(self, task: Task) -> Overrides:
        lists = self.out / "list"
        scored = lists / ("held_out.txt" if task.images == "tune" else "val.txt")
        keys = {**PLANNED, "DATA.data_root": self.data_root, "DATA.train_list": lists / f"{task.images or 'train'}.txt"}
        keys |= {"DATA.val_list": scored, "TEST.test_list": scored, "TRAIN.gradient_shares": False}
        keys |= {"TRAIN.save_freq": 1000}  # a run takes seconds to minutes: only its end, and what a signal stops
        if PER_BATCH in task.overrides:
            keys["DATA.unlabelled_list"] = lists / "unlabelled.txt"
        if self.pretrained:
            keys["TRAIN.pretrained"] = self.pretrained / f"resnet{50 if task.run == 'pspnet50' else 18}.pth"
        return keys

    def settings(self, task: Task) -> Settings:
        """The weights by their description, not by where they lie."""
        found = super().settings(task)
        return {
            key: self.weights or value if key.endswith("TRAIN.pretrained") else value for key, value in found.items()
        }

    def prepare(self, task: Task) -> None:
        (self.out / "list").mkdir(parents=True, exist_ok=True)
        for name, lines in image_lists(ROOT / "dataset/animals/split").items():
            files.replace_text(self.out / "list" / f"{name}.txt", "".join(f"{line}\n" for line in lines))
