"""The six scripts in order, for one dataset and seed, then a picture and the report.

    python tool/pipeline.py --dataset shapes --seed 0 [--out exp/shapes] [SECTION.key VALUE ...]

Started again it goes on where it was stopped; what is already trained and tested with the same
settings is skipped. Overrides go to all six scripts, those of DISTILL to the distilled student's
alone. Seed 0 writes to exp/DATASET, where the config files say; another seed to exp/DATASET/seed_N.
For shapes the seed also draws the scenes: those of seed 0 lie in dataset/shapes, others beside
their runs.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tool.report.picture import comparison  # noqa: E402
from util import config  # noqa: E402
from util.run import Parser, errors_in_one_line  # noqa: E402

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

    def perform(self) -> None:
        """Train and test, unless the result of the same settings and teacher's file is there.

        After an interruption the training resumes from its checkpoints, and refuses settings other
        than theirs.
        """
        cfg = self.load()
        teacher = ROOT / cfg.distill.teacher_path if cfg.distill else None
        written = teacher.stat().st_mtime_ns if teacher and teacher.is_file() else None
        settings = f"{cfg.model_dump_json(by_alias=True)}\n{written}\n"
        result = ROOT / cfg.test.save_folder
        done = result / ".settings"
        if (result / "metrics.json").is_file() and done.is_file() and done.read_text() == settings:
            print(f"{result / 'metrics.json'} is there: skipping {self.train} and {self.test}", flush=True)
            return
        done.unlink(missing_ok=True)
        call(self.train, *self.arguments)
        call(self.test, *self.arguments)
        done.write_text(settings)


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
    plain = {key: value for key, value in keys.items() if not key.startswith("DISTILL.")}
    common = {"TRAIN.manual_seed": seed, **(generated(data) if data else {})}
    runs: dict[str, Run] = {}
    for depth, name in CONFIGS.items():
        run = Run(f"train_{depth}.py", f"test_{depth}.py", config_file(dataset, name), common | plain)
        own: Overrides = {"TRAIN.save_path": out / name / "model"}
        if depth == "50_18":
            own["DISTILL.teacher_path"] = runs["50"].load().test.model_path
            for role, of in (("teacher", "50"), ("student", "18")):
                own[f"TEST.compare.{role}"] = Path(runs[of].load().test.save_folder, "metrics.json")
        runs[depth] = run._replace(overrides=common | own | (keys if depth == "50_18" else plain))
        runs[depth].load()
    return runs


def call(*command: str) -> None:
    """Run a Python script of the project from its root; exit with its status when it fails."""
    print("\n$ python", *command, flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    while process.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the script, too: it saves and ends by itself
            process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def prepare_shapes(data: Path, seed: int) -> None:
    if not (data / "list/val.txt").exists():
        call("dataset/shapes/prepare.py", "--seed", str(seed), "--out", str(data))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, usage="%(prog)s [--dataset NAME] [--seed N] [--out FOLDER] [KEY VALUE ...]")
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key VALUE")
    start = time.monotonic()
    os.chdir(ROOT)  # the paths of the config files are relative to it
    with errors_in_one_line():
        arguments = parser.parse_intermixed_args(argv)
        dataset, seed = arguments.dataset, arguments.seed
        out = arguments.out or Path("exp", dataset, *([f"seed_{seed}"] if seed else []))
        data = (out / "data" if seed else Path("dataset/shapes")) if dataset == "shapes" else None
        runs = three_runs(dataset, seed, out, data, arguments.overrides)
        if data:
            prepare_shapes(data, seed)
        for run in runs.values():
            run.perform()
        roles = {"teacher": "50", "student alone": "18", "distilled": "50_18"}
        results = {role: Path(runs[depth].load().test.save_folder) for role, depth in roles.items()}
        comparison(runs["50_18"].load(), results, out)
    call("tool/report/compare.py", *(str(out / name) for name in CONFIGS.values()), "--out", str(out))
    minutes = (time.monotonic() - start) / 60
    print(f"pictures in {out}/comparison.png, {minutes:.1f} minutes in all; now open {out}/report.html in a browser")


if __name__ == "__main__":
    main()
