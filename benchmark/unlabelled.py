"""What pictures without labels buy: shapes with a quarter of its labels, with and without the other images.

    python benchmark/unlabelled.py [--seeds 0 1 2] [--out exp/unlabelled] [--json FILE]

For each seed: 100 labelled and 300 unlabelled scenes; a teacher and a student trained on the labelled ones; the student
distilled on those; distilled with as many unlabelled images beside them in each batch; and distilled on the labelled
ones alone for as long as that took (twice the epochs); both once more with twice the budget. Started again it goes on
where it stopped.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.measure import call  # noqa: E402

LABELLED = 100  # of the 400 scenes
CONFIG = "config/shapes/shapes_{}.yaml"
RECIPE = ["DISTILL.hints", "[]"]  # kl and aux_mse, with which the README's numbers were measured
BOTH = [*RECIPE, "TRAIN.unlabelled_per_batch", "4"]
# name: script, config, epochs (25 steps each: as many steps as config/shapes takes), overrides
RUNS = {
    "teacher": ("50", "pspnet50", 28, []),
    "student alone": ("18", "pspnet18", 16, []),
    "distilled, labelled images": ("50_18", "pspnet50_18", 16, RECIPE),
    "distilled, labelled images, twice as long": ("50_18", "pspnet50_18", 32, RECIPE),
    "distilled, labelled and unlabelled images": (
        "50_18",
        "pspnet50_18",
        16,
        [*RECIPE, "TRAIN.unlabelled_per_batch", "4"],
    ),
    "distilled, labelled images, four times as long": ("50_18", "pspnet50_18", 64, RECIPE),
    "distilled, both, twice as long": ("50_18", "pspnet50_18", 32, BOTH),
}


def prepare(data: Path, seed: int) -> None:
    """Scenes and their lists under `data`: quarter.txt with labels, rest.txt without."""
    if not (data / "rest.txt").exists():
        call("dataset/shapes/prepare.py", "--seed", str(seed), "--out", str(data))
        pairs = (data / "list" / "train.txt").read_text().splitlines()
        (data / "quarter.txt").write_text("\n".join(pairs[:LABELLED]) + "\n")
        (data / "rest.txt").write_text("\n".join(pair.split()[0] for pair in pairs[LABELLED:]) + "\n")


def run(out: Path, seed: int, name: str) -> float:
    """Train and test one of RUNS -> its mIoU on val."""
    script, config, epochs, options = RUNS[name]
    data, folder = out / "data", out / name.replace(",", "").replace(" ", "_")
    keys = {"TRAIN.manual_seed": seed, "TRAIN.epochs": epochs, "TRAIN.save_path": folder / "model",
            "TRAIN.evaluate": False, "TRAIN.pictures": 0, "TRAIN.save_freq": 4, "DATA.data_root": data,
            "DATA.train_list": data / "quarter.txt", "DATA.val_list": data / "list/val.txt",
            "TEST.test_list": data / "list/val.txt", "TEST.save_folder": folder / "result",
            "TEST.model_path": folder / f"model/train_epoch_{epochs}.pth"}  # fmt: skip
    if config == "pspnet50_18":
        keys["DISTILL.teacher_path"] = out / "teacher/model" / f"train_epoch_{RUNS['teacher'][2]}.pth"
    if options:
        keys["DATA.unlabelled_list"] = data / "rest.txt"
    overrides = ["--config", CONFIG.format(config), *(str(part) for pair in keys.items() for part in pair), *options]
    if not (folder / "result/metrics.json").exists():
        call(f"train_{script}.py", *overrides)
        call(f"test_{script}.py", *overrides)
    return json.loads((folder / "result/metrics.json").read_text())["mIoU"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "exp" / "unlabelled")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, list[float]] = {name: [] for name in RUNS}
    for seed in arguments.seeds:
        out = arguments.out.resolve() / f"seed_{seed}"
        prepare(out / "data", seed)
        for name in RUNS:
            results[name].append(run(out, seed, name))
    print(f"\nmIoU %, shapes, {LABELLED} labels\n| | " + " | ".join(f"seed {s}" for s in arguments.seeds) + " | mean |")
    print("|" + "---|" * (len(arguments.seeds) + 2))
    for name, values in results.items():
        print(f"| {name} | " + " | ".join(f"{100 * v:.2f}" for v in [*values, statistics.mean(values)]) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seeds": arguments.seeds, "mIoU": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
