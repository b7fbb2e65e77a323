"""What `make demo` gives on seeds that no tuning saw: python benchmark/demo.py [--out exp/results/demo]

Runs tool/pipeline.py on each of SEEDS and records the three scores in results/demo.json; what is recorded is not run
again, and what was stopped goes on. benchmark/evidence.py makes the table.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.record import Settings, settings_of, without_defaults  # noqa: E402
from benchmark.speed import measure  # noqa: E402
from tool import pipeline  # noqa: E402
from util import files  # noqa: E402

SEEDS = (10, 11, 12, 13, 14, 15)  # 0 to 2 were used for tuning
METHODS = {"teacher": "50", "student": "18", "default": "50_18"}
RECORD = ROOT / "benchmark" / "results" / "demo.json"


def settings(seed: int) -> dict[str, Settings]:
    """By method, all that decides the scores of this seed."""
    runs = pipeline.three_runs("demo", seed, Path("exp"), Path("exp"), [])
    return {method: without_defaults(settings_of(runs[depth].load())) for method, depth in METHODS.items()}


def entries(seed: int, out: Path) -> list[dict[str, Any]]:
    """What is recorded of the three networks of a seed that has been run."""
    found = []
    for method, own in settings(seed).items():
        metrics = json.loads((out / pipeline.CONFIGS[METHODS[method]] / "result" / "metrics.json").read_text())
        scores = {name: metrics[name] for name in ("mIoU", "mAcc", "allAcc")}
        beside = {"student": "student", "teacher": "teacher"}
        found.append({"method": method, "seed": seed, **scores, "epochs": own["TRAIN.epochs"], "beside": beside,
                      "machine": measure.machine()["device"], "settings": own})  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "exp/results/demo", help="folder (default: %(default)s)")
    out = parser.parse_args().out
    runs = json.loads(RECORD.read_text())["runs"] if RECORD.is_file() else []
    for seed in SEEDS:
        if any(entry["seed"] == seed for entry in runs):
            continue
        folder = out / f"seed_{seed}"
        pipeline.main(["--dataset", "demo", "--seed", str(seed), "--out", str(folder)])
        runs += entries(seed, folder)
        lines = ",\n".join(map(json.dumps, runs))
        files.replace_text(RECORD, f'{{"runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
