"""The six scripts in order, for one dataset and seed, then a picture and the report.

    python tool/pipeline.py --dataset demo --seed 0 [--out exp/demo] [SECTION.key VALUE ...]

Started again it goes on where it was stopped; what is already trained and tested with the same
settings is skipped. Overrides go to all six scripts, those of DISTILL to the distilled student's
alone. Seed 0 writes to exp/DATASET, where the config files say; another seed to exp/DATASET/seed_N.
For demo and shapes, which are generated, the seed also draws the scenes: those of seed 0 lie in
dataset/DATASET, others beside their runs; and it is said beforehand, and after each epoch, how long
all will take on this machine.
"""

import contextlib
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tool import forecast
from tool.report.picture import comparison
from util import config
from util.errors import UserError
from util.run import Parser, errors_in_one_line
from util.train.hints import check_hints

ROOT = Path(__file__).resolve().parent.parent
GENERATED = {"shapes": (), "demo": ("--easy", "--train", "320")}  # options of dataset/shapes/prepare.py
CONFIGS = {"50": "pspnet50", "18": "pspnet18", "50_18": "pspnet50_18"}  # by the scripts' names

Overrides = dict[str, Any]


class Run(NamedTuple):
    """One network: the scripts that train and test it, their config file and overrides."""

    train: str
    test: str
    config: str
    overrides: Overrides

    @property
    def arguments(self) -> list[str]:
        return ["--config", self.config, *(str(part) for pair in self.overrides.items() for part in pair)]

    def load(self) -> config.Config:
        """Raises UserError for a mistake in the config file or in the overrides."""
        return config.load(ROOT / self.config, self.arguments[2:])

    def perform(self, progress: forecast.Progress | None = None) -> None:
        """Train and test, unless the result of the same settings, lists and teacher's file is there.

        After an interruption the training resumes from its checkpoints, and refuses settings other
        than theirs.
        """
        progress = progress or forecast.Progress({})
        cfg = self.load()
        teachers = [ROOT / path for path in cfg.distill.teachers] if cfg.distill else []
        written = [path.stat().st_mtime_ns for path in teachers if path.is_file()]
        lists = {cfg.data.train_list, cfg.data.unlabelled_list, cfg.data.val_list, cfg.test.test_list} - {"", None}
        contents = [zlib.crc32(path.read_bytes()) for path in (ROOT / name for name in sorted(lists)) if path.is_file()]
        settings = f"{cfg.model_dump_json(by_alias=True)}\n{written}\n{contents}\n"
        result = ROOT / cfg.test.save_folder
        done = result / ".settings"
        if (result / "metrics.json").is_file() and done.is_file() and done.read_text() == settings:
            print(f"{result / 'metrics.json'} is there: skipping {self.train} and {self.test}", flush=True)
            progress.skip(self.train, self.test)
            return
        done.unlink(missing_ok=True)
        call(self.train, *self.arguments, watch=lambda: progress.say(self.train, trained(cfg)))
        progress.finish(self.train)
        call(self.test, *self.arguments, watch=lambda: progress.say(self.test))
        progress.finish(self.test)
        done.write_text(settings)


def trained(cfg: config.Config) -> float:
    """The share of its epochs that a run has finished."""
    epochs = ROOT / cfg.train.save_path / "metrics.jsonl"  # a line each
    return epochs.read_bytes().count(b"\n") / cfg.train.epochs if epochs.is_file() else 0.0


def config_file(dataset: str, run: str) -> str:
    return f"config/{dataset}/{dataset}_{run}.yaml"


def generated(data: Path, train_list: str = "train.txt") -> Overrides:
    """The keys that name the generated dataset in `data`."""
    lists = {"DATA.train_list": data / "list" / train_list, "DATA.val_list": data / "list/val.txt"}
    return {"DATA.data_root": data, "TEST.test_list": data / "list/val.txt", **lists}


def three_runs(dataset: str, seed: int, out: Path, data: Path | None, given: list[str]) -> dict[str, Run]:
    """Teacher, student and distilled student by their scripts' names; given: overrides.

    Raises UserError for a mistake in any of them.
    """
    config.load(ROOT / config_file(dataset, "pspnet50_18"), given)  # the only one that knows all keys
    keys = dict(zip(given[::2], given[1::2], strict=True))
    if one := {"TRAIN.save_path", "TEST.save_folder", "TEST.model_path"} & keys.keys():
        raise UserError(f"{min(one)} would be the same for all three networks; --out names a folder for each")
    plain = {key: value for key, value in keys.items() if not key.startswith("DISTILL.")}
    common = {"TRAIN.manual_seed": seed, **(generated(data) if data else {})}
    runs: dict[str, Run] = {}
    for depth, name in CONFIGS.items():
        run = Run(f"train_{depth}.py", f"test_{depth}.py", config_file(dataset, name), common | plain)
        own: Overrides = {"TRAIN.save_path": out / name / "model"}
        if run.load().train.patience:  # it may end before its last epoch
            own["TEST.model_path"] = out / name / "model" / "best.pth"
        if depth == "50_18":
            teacher = runs["50"].load()
            own["DISTILL.teacher_path"] = teacher.test.model_path
            if "DISTILL.teacher_path" not in keys:
                own["DISTILL.teacher_layers"] = teacher.train.layers
                own["DISTILL.teacher_backbone"] = teacher.train.backbone or "null"
            for role, of in (("teacher", "50"), ("student", "18")):
                own[f"TEST.compare.{role}"] = Path(runs[of].load().test.save_folder, "metrics.json")
        runs[depth] = run._replace(overrides=common | own | (keys if depth == "50_18" else plain))
        cfg = runs[depth].load()
    check_hints(cfg.distill.hints, labelled=bool(cfg.data.train_list))  # before anything is trained
    return runs


def call(*command: str, watch: Callable[[], object] = lambda: None) -> None:
    """Run a Python script of the project from its root, with a call of `watch` every second; exit with its status when
    it fails."""
    print("\n$ python", *command, flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    while process.poll() is None:
        watch()
        # Ctrl-C reaches the script, too: it saves and ends by itself
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            process.wait(timeout=1)
    if process.returncode:
        sys.exit(process.returncode)


def prepare(dataset: str, data: Path, seed: int) -> None:
    """Generate the scenes of `dataset`, one of GENERATED, unless they are there."""
    if not (data / "list/val.txt").exists():
        call("dataset/shapes/prepare.py", *GENERATED[dataset], "--seed", str(seed), "--out", str(data))


def measured(runs: dict[str, Run]) -> forecast.Progress:
    print("\nmeasuring how long all will take", flush=True)
    costs = forecast.measure({depth: run.load() for depth, run in runs.items()})
    print(f"about {sum(costs.values()) / 60:.1f} minutes on this machine, as busy as it is now", flush=True)
    return forecast.Progress(costs)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, usage="%(prog)s [--dataset NAME] [--seed N] [--out FOLDER] [KEY VALUE ...]")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key VALUE")
    start = time.monotonic()
    os.chdir(ROOT)  # the paths of the config files are relative to it
    with errors_in_one_line():
        arguments = parser.parse_intermixed_args(argv)
        dataset, seed = arguments.dataset, arguments.seed
        out = arguments.out or Path("exp", dataset, *([f"seed_{seed}"] if seed else []))
        data = (out / "data" if seed else Path("dataset", dataset)) if dataset in GENERATED else None
        runs, progress = three_runs(dataset, seed, out, data, arguments.overrides), None
        if data:
            prepare(dataset, data, seed)
            progress = measured(runs)
        for run in runs.values():
            run.perform(progress)
        roles = {"teacher": "50", "student alone": "18", "distilled": "50_18"}
        results = {role: Path(runs[depth].load().test.save_folder) for role, depth in roles.items()}
        comparison(runs["50_18"].load(), results, out)
    call("tool/report/compare.py", *(str(out / name) for name in CONFIGS.values()), "--out", str(out))
    minutes = (time.monotonic() - start) / 60
    print(f"pictures in {out}/comparison.png, {minutes:.1f} minutes in all; now open {out}/report.html in a browser")


if __name__ == "__main__":
    main()
