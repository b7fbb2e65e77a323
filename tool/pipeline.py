"""The six scripts in order, for one dataset and one seed, then a picture of the predictions and a report to look at.

    python tool/pipeline.py --dataset shapes --seed 0 [--out exp/shapes] [SECTION.key VALUE ...]

Started again it goes on where it stopped. Overrides go to all six scripts. Seed 0 writes to exp/DATASET, where the
config files say; another seed to exp/DATASET/seed_N. For shapes the seed also draws the scenes: those of seed 0 lie
in dataset/shapes, others beside their runs.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tool.report.picture import comparison  # noqa: E402
from util import config  # noqa: E402
from util.run import errors_in_one_line  # noqa: E402

RUNS = {"50": "pspnet50", "18": "pspnet18", "50_18": "pspnet50_18"}


def config_file(dataset: str, run: str) -> str:
    return f"config/{dataset}/{dataset}_{run}.yaml"


def overrides(dataset: str, seed: int, out: Path, data: Path | None, given: list[str]) -> dict[str, list[str]]:
    """For each run, the overrides that put what it writes under `out`, then those `given` on the command line.

    data: where generated scenes lie. DISTILL's keys go to the run that has them.
    """
    common = ["TRAIN.manual_seed", str(seed)]
    pairs = list(zip(given[::2], given[1::2], strict=False))
    plain = [part for pair in pairs if not pair[0].startswith("DISTILL.") for part in pair]
    if data:
        common += ["DATA.data_root", str(data)]
        common += [part for key in ("DATA.val_list", "TEST.test_list") for part in (key, f"{data}/list/val.txt")]
        common += ["DATA.train_list", f"{data}/list/train.txt"]
    result, models = {}, {}
    for run in RUNS.values():
        epochs = config.load(config_file(dataset, run), plain).train.epochs
        models[run] = f"{out / run}/model/train_epoch_{epochs}.pth"
        paths = {"TRAIN.save_path": out / run / "model", "TEST.model_path": models[run]}
        paths["TEST.save_folder"] = out / run / "result"
        result[run] = common + [str(part) for pair in paths.items() for part in pair]
    for name, run in (("teacher", "pspnet50"), ("student", "pspnet18")):
        result["pspnet50_18"] += [f"TEST.compare.{name}", f"{out / run}/result/metrics.json"]
    result["pspnet50_18"] += ["DISTILL.teacher_path", models["pspnet50"]]
    return {run: keys + (given if run == "pspnet50_18" else plain) for run, keys in result.items()}


def call(*command: str) -> None:
    """Run a Python script of the project; exit with its status when it fails."""
    print("\n$ python", *command, flush=True)
    process = subprocess.Popen([sys.executable, *command])
    while process.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the script, too: it saves and ends by itself
            process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key VALUE")
    arguments = parser.parse_intermixed_args()
    out = arguments.out or Path("exp", arguments.dataset, *([f"seed_{arguments.seed}"] if arguments.seed else []))
    start = time.monotonic()
    os.chdir(ROOT)  # where the scripts and the paths of the config files are
    with errors_in_one_line():
        data = None
        if arguments.dataset == "shapes":
            data = out / "data" if arguments.seed else Path("dataset/shapes")
            if not (data / "list/val.txt").exists():
                call("dataset/shapes/prepare.py", "--seed", str(arguments.seed), "--out", str(data))
        settings = overrides(arguments.dataset, arguments.seed, out, data, arguments.overrides)
        for depth, run in RUNS.items():
            for verb in ("train", "test"):
                call(f"{verb}_{depth}.py", "--config", config_file(arguments.dataset, run), *settings[run])
        cfg = config.load(config_file(arguments.dataset, "pspnet50_18"), settings["pspnet50_18"])
        results = {"teacher": "pspnet50", "student alone": "pspnet18", "distilled": "pspnet50_18"}
        comparison(cfg, {name: out / run / "result" for name, run in results.items()}, out)
    call("tool/report/compare.py", *(str(out / run) for run in RUNS.values()), "--out", str(out))
    minutes = (time.monotonic() - start) / 60
    print(f"pictures in {out}/comparison.png, {minutes:.1f} minutes in all; now open {out}/report.html in a browser")


if __name__ == "__main__":
    main()
