"""What the runs of benchmark/results.py say together: means, spreads, paired gains with intervals, README tables."""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tool import bootstrap, runs  # noqa: E402

RESAMPLES = 2000
BLOCK = {"camvid": 10, "shapes": 1}  # images drawn together: neighbours in a video are not independent
NAMES = {"student": "student alone", "same time": "student alone, the default's time", "default": "distilled, default"}

Key = tuple[str, int]  # method, seed


def _drawn(dataset: str, folders: dict[Key, Path]) -> dict[Key, np.ndarray]:
    """mIoU of each run in RESAMPLES draws of val images, the same draws for all runs."""
    result = {}
    for seed in sorted({seed for _, seed in folders}):  # on shapes each seed has images of its own
        keys = [key for key in folders if key[1] == seed]
        read = [runs.read(folders[key]) for key in keys]
        counts = runs.count(read, runs.pairs_of(read[0]), border=0.01)
        drawn = bootstrap.resampled_iou(counts.pixels.sum(2), RESAMPLES, block=BLOCK[dataset])
        result |= {key: np.nanmean(drawn[:, i], 1) for i, key in enumerate(keys)}
    return result


def summarise(dataset: str, entries: list[dict[str, Any]], folders: dict[Key, Path]) -> dict[str, Any]:
    """For each method: runs, mean and standard deviation over seeds, mean seconds; and, where both are there, the gain
    over the student of the same seed (mean, its spread over seeds, 95 % interval over images) and the gap closed."""
    scores: dict[str, dict[int, float]] = {}
    for entry in entries:
        scores.setdefault(entry["method"], {})[entry["seed"]] = entry["mIoU"]
    drawn, summary = _drawn(dataset, folders), {}
    teacher, student = scores.get("teacher", {}), scores.get("student", {})
    for method, by_seed in scores.items():
        values = list(by_seed.values())
        seconds = [entry["seconds"] for entry in entries if entry["method"] == method]
        row: dict[str, Any] = {
            "runs": len(values),
            "mean": statistics.mean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else None,
            "seconds": statistics.mean(seconds),
        }
        paired = [seed for seed in by_seed if seed in student and method not in ("student", "teacher")]
        if paired:
            gains = [by_seed[seed] - student[seed] for seed in paired]
            both = np.mean([drawn[method, seed] - drawn["student", seed] for seed in paired], 0)
            gap = statistics.mean(teacher.get(seed, next(iter(teacher.values()))) - student[seed] for seed in paired)
            row |= {
                "gain": statistics.mean(gains),
                "gain_spread": statistics.stdev(gains) if len(gains) > 1 else None,
                "gain_interval": bootstrap.interval(both),
                "gap_closed": statistics.mean(gains) / gap if gap > 0 else None,
            }
        summary[method] = row
    return summary


def table(summary: dict[str, dict[str, Any]]) -> str:
    """Markdown, in percent and points; the budget is wall-clock training time."""
    lines = [
        "| | runs | mIoU | spread | gain over the student alone | 95 % interval | gap closed | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def points(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    for method, row in summary.items():
        low, high = row.get("gain_interval", (None, None))
        closed = row.get("gap_closed")
        cells = [NAMES.get(method, method), str(row["runs"]), points(row["mean"]), points(row["spread"])]
        cells += [points(row.get("gain")), f"{points(low)} to {points(high)}" if low is not None else ""]
        cells += ["" if closed is None else f"{100 * closed:.0f} %", f"{row['seconds'] / 60:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rewrite_readme(readme: Path, results: Path) -> None:
    """Put the table of each results/DATASET.json between README's `<!-- results: DATASET -->` and `<!-- end -->`."""
    text = readme.read_text()
    for path in (results / f"{dataset}.json" for dataset in BLOCK):
        if not path.is_file():
            continue
        start = f"<!-- results: {path.stem} -->"
        if start not in text:
            sys.exit(f"error: {readme} has no line {start} to put the table of {path} after")
        made = f"{start}\n{table(json.loads(path.read_text())['summary'])}\n<!-- end -->"
        text = re.sub(re.escape(start) + r".*?<!-- end -->", lambda _, made=made: made, text, flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    rewrite_readme(ROOT / "README.md", ROOT / "benchmark" / "results")
