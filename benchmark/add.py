"""Record tested runs of one method, a folder for each seed, that other commands than results.py made.

    python benchmark/add.py animals_short imagenet exp/animals/imagenet_10 exp/animals/imagenet_11

Scores go to benchmark/results/RECORD.json, pixel counts to RECORD.npz; a run of the same method and
seed is replaced. Seed, epochs and settings are those in the tested checkpoint; a teacher from elsewhere
(TEST.teacher) has none of them. RESULTS.md names the commands.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import plan
from benchmark.experiments import scored
from benchmark.record import RunRecord, locked, without_defaults
from benchmark.results import FOLDER
from tool.report import runs
from util import checkpoint
from util.run import errors_in_one_line


def entry(method: str, folder: Path, student: str, teacher: str) -> tuple[dict[str, Any], np.ndarray]:
    """What is recorded of the run in `folder`. Raises UserError where it was not tested or its checkpoint is gone."""
    tested = runs.read(folder)
    if tested.metrics["protocol"].get("teacher"):  # by TEST.teacher: trained elsewhere
        trained = {"seed": 0, "epoch": "", "settings": {}}
    else:
        trained = checkpoint.read(tested.checkpoint)
    scores, pixels = scored(tested)
    beside = {"student": student, "teacher": teacher}
    config = {"settings": without_defaults(trained["settings"])}
    about = {"seed": trained["seed"], "epochs": trained["epoch"], "beside": beside, "config": config}
    return {"method": method, **scores, **about}, pixels


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record")
    parser.add_argument("method")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--student", help="method that the gain is measured from (default: none)")
    parser.add_argument("--teacher", default="teacher", help="method that teaches it")
    arguments = parser.parse_args(argv)
    path = FOLDER / arguments.record
    with errors_in_one_line(), locked(path):
        record = RunRecord(path, new=arguments.record in plan.ADDED)
        for folder in arguments.folders:
            made, pixels = entry(arguments.method, folder, arguments.student or arguments.method, arguments.teacher)
            if known := record.find(made["method"], made["seed"]):
                record.drop(known)
            record.add(made, pixels)


if __name__ == "__main__":
    main()
