"""Rewrite the tables of RESULTS.md and README.md: python benchmark/evidence.py

An interval in a table is over seeds: mean +- t * s / sqrt(n) of the differences paired by seed,
with Student's t for n - 1 degrees of freedom at 95 %. It asks whether a new seed would show the
same, and each row stands for itself. The percentile interval over val images (what other images
would give to these very networks) goes to the JSON beside it.
"""

import functools
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import animals, plan, tables
from benchmark.record import RunRecord
from tool import pipeline
from tool.report import bootstrap
from util import config

ROOT = Path(__file__).resolve().parent.parent
RESAMPLES = 2000
SMALL_GAP = 0.01  # below one point of mIoU between teacher and student the share of it says nothing
# Every ranking of methods that RESULTS.md and README.md speak of, and those that they leave open.
AMONG_METHODS = (
    *((plan.EQUAL_TIME, other) for other in ("default", "cwd", "teacher")),
    *(("cwd", other) for other in ("default", "aux_mse", "kl + aux_mse", "kl", "original")),
    *(("default", other) for other in ("aux_mse", "kl + aux_mse", "kl", "original")),
    *(("aux_mse", other) for other in ("kl + aux_mse", "kl")),
    ("3 aux_mse", "kl + 3 aux_mse"),
    ("fitnet", "kl"),
)
AMONG_ABLATIONS = (
    *((name, "default") for name in plan.SETTINGS),
    *((f"default, teacher of {epochs} epochs", "default") for epochs in plan.TEACHER_EPOCHS),
    ("student, 16 epochs", "teacher of 21 epochs"),
    *((f"default, {labels} labels", f"teacher, {labels} labels") for labels in plan.LABELS),
    ("student, 75 epochs", "default, 40 epochs"),
)
GROUPS: dict[str, tuple[Mapping[str, Sequence[int]], Sequence[tuple[str, str]]]] = {
    "summary": (plan.SEEDS, AMONG_METHODS),
    "ablations": (plan.ABLATION_SEEDS, AMONG_ABLATIONS),
}
OF_ANIMALS = (
    *((alone, other) for alone in ("student_equal_time", "student_double") for other in animals.RECIPES),
    *(("default", other) for other in animals.RECIPES if other != "default"),
    *(("nfd", other) for other in ("kl", "aux_mse", "cwd", "nfd+aux_mse")),
    *((other, "kl") for other in ("aux_mse", "cwd")),
    *((method, "kl") for method in animals.QUESTION_NAMES),
)

Scores = Mapping[tuple[str, int], float]  # by method and seed
Draws = Callable[[str, int], NDArray[np.float64] | None]


def seed_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def draws_of(dataset: str, pixels: Mapping[str, NDArray[np.int32]]) -> Draws:
    """draws(method, seed) -> mIoU in each of RESAMPLES draws of the val images, or None.

    pixels: "METHOD SEED" -> (images, 3 kinds, classes), see tool/report/runs.py. All runs of a seed
    have the same draws; where seeds share their images (CamVid) they share the draws.
    """

    name = dataset.partition("_")[0]
    block = config.load(ROOT / f"config/{name}/{name}_pspnet18.yaml").data.video_block

    @functools.cache
    def draws(method: str, seed: int) -> NDArray[np.float64] | None:
        counts = pixels.get(f"{method} {seed}")
        if counts is None:
            return None
        same = seed if dataset in pipeline.GENERATED else 0
        return np.nanmean(bootstrap.resampled_iou(counts[None], RESAMPLES, block, same)[:, 0], 1)

    return draws


def difference(score: Scores, method: str, other: str, seeds: Iterable[int], draws: Draws | None) -> dict[str, Any]:
    """`method` minus `other`, paired by seed; {} where no seed has both."""
    paired = [seed for seed in seeds if (method, seed) in score and (other, seed) in score]
    if not paired:
        return {}
    gains = [score[method, seed] - score[other, seed] for seed in paired]
    found = {"runs": len(gains), "gain": statistics.mean(gains), "interval": seed_interval(gains)}
    pairs = [(draws(method, seed), draws(other, seed)) for seed in paired] if draws else []
    if pairs and not any(drawn is None for pair in pairs for drawn in pair):
        found["interval_over_images"] = bootstrap.interval(np.mean([one - two for one, two in pairs], 0))
    return found


def summarise(entries: Sequence[Mapping[str, Any]], draws: Draws | None = None) -> dict[str, dict[str, Any]]:
    """For each method: epochs, mean and standard deviation over seeds; for a student also its gain
    over the student alone of as many epochs and labels, and the share of the gap to the teacher
    that it closes."""
    score = {(entry["method"], entry["seed"]): entry["mIoU"] for entry in entries}
    summary: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(entry["method"] for entry in entries):
        own = [entry for entry in entries if entry["method"] == method]
        values = [entry["mIoU"] for entry in own]
        row = {"runs": len(own), "epochs": own[0]["epochs"], "mean": statistics.mean(values)}
        row["spread"] = statistics.stdev(values) if len(values) > 1 else None
        student, teacher = own[0]["beside"]["student"], own[0]["beside"]["teacher"]
        seeds = [entry["seed"] for entry in own]
        gain = difference(score, method, student, seeds, draws)
        if gain and method not in (student, teacher) and not method.startswith("teacher"):
            leads = [lead for seed in seeds if (lead := _lead(score, teacher, student, seed)) is not None]
            gap = statistics.mean(leads) if len(leads) == gain["runs"] else 0
            row |= gain | {"gap_closed": gain["gain"] / gap if gap > SMALL_GAP else None}
        summary[method] = row
    return summary


def contrasts(
    entries: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]], draws: Draws | None = None
) -> list[dict[str, Any]]:
    """Method against method, for each of `pairs` that has two seeds."""
    score = {(entry["method"], entry["seed"]): entry["mIoU"] for entry in entries}
    seeds = dict.fromkeys(entry["seed"] for entry in entries)
    rows = []
    for method, other in pairs:
        row = difference(score, method, other, seeds, draws)
        if row and row["interval"]:
            rows.append({"method": method, "other": other, **row})
    return rows


def _lead(score: Scores, teacher: str, student: str, seed: int) -> float | None:
    """The teacher's over the student; on CamVid one teacher serves all seeds."""
    of_seed = [value for (method, s), value in score.items() if method == teacher and s == seed]
    any_seed = [value for (method, _), value in score.items() if method == teacher]
    found = of_seed or (any_seed if len(any_seed) == 1 else [])
    return found[0] - score[student, seed] if found and (student, seed) in score else None


def analyse(dataset: str, content: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Any]:
    """The record with each group's rows and contrasts; intervals over images need `draws`."""
    found = dict(content)
    for name, (seeds, pairs) in groups(dataset).items():
        entries = [entry for entry in content["runs"] if entry["seed"] in seeds[dataset]]
        found[name] = summarise(entries, draws)
        found[f"{name} contrasts"] = contrasts(entries, pairs, draws)
    return found


def groups(dataset: str) -> Mapping[str, tuple[Mapping[str, Sequence[int]], Sequence[tuple[str, str]]]]:
    """For each group of entries, its seeds by dataset, and the methods to be compared."""
    if dataset in plan.ADDED:
        seeds, pairs = plan.ADDED[dataset]
        return {"summary": ({dataset: seeds}, pairs)}
    return {"summary": ({"animals": animals.SEEDS}, OF_ANIMALS)} if dataset == "animals" else GROUPS


def main() -> None:
    found = {}
    folder = ROOT / "benchmark" / "results"
    for dataset in (*plan.SEEDS, "animals", *plan.ADDED):
        record = RunRecord(folder / dataset)
        record.content = found[dataset] = analyse(dataset, record.content, draws_of(dataset, record.pixels))
        record.write()
    found["animals"] = {**found["animals"], "tuned": RunRecord(folder / "animals_tuning").content}
    for path in (ROOT / "README.md", ROOT / "benchmark" / "RESULTS.md"):
        path.write_text(tables.rewrite(path.read_text(), found))


if __name__ == "__main__":
    main()
