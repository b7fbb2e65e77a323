"""What the runs of benchmark/results.py say together: means, spreads, paired gains with intervals, README tables."""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark import plan  # noqa: E402
from tool.report import bootstrap  # noqa: E402

RESAMPLES = 2000
SMALL_GAP = 0.01  # a share of less than a point of mIoU says nothing
BLOCK = {"camvid": 10, "shapes": 1}  # images drawn together: neighbours in a video are not independent
NAMES = {
    "student": "student alone",
    plan.SAME_TIME: "student alone, the default's time",
    plan.FLOAT32: "student alone, float32",
    "default": "distilled, default",
    "original": "distilled, the original's losses",
    **{name: f"distilled, `{name}`" for name in (*plan.METHODS, *plan.CAMVID) if name not in ("default", "original")},
}
MAIN = ("teacher", "student", plan.FLOAT32, *plan.METHODS, *plan.CAMVID)
FAIR = ("student", plan.SAME_TIME, "default", "kl + 3 aux_mse", "cwd")


def summarise(
    dataset: str, entries: list[dict[str, Any]], pixels: Mapping[str, NDArray[np.int32]]
) -> dict[str, dict[str, Any]]:
    """For each method: runs, epochs, mean and standard deviation over seeds; and, for students, the gain over the
    student of the same seed: mean, spread over seeds, 95 % interval over images, and the share of the gap closed.

    pixels: "METHOD SEED" -> (images, 3 kinds, classes), see tool/runs.py. Each seed draws images of its own for the
    bootstrap, the same ones for all its runs; where seeds share their images (CamVid) they share the draws.
    """
    score = {(entry["method"], entry["seed"]): entry["mIoU"] for entry in entries}
    summary: dict[str, dict[str, Any]] = {}

    def drawn(method: str, seed: int) -> NDArray[np.float64]:
        counts = pixels[f"{method} {seed}"][None]
        draws = bootstrap.resampled_iou(counts, RESAMPLES, BLOCK[dataset], seed if dataset == "shapes" else 0)
        return np.nanmean(draws[:, 0], 1)

    for method in dict.fromkeys(entry["method"] for entry in entries):
        own = [entry for entry in entries if entry["method"] == method]
        values = [entry["mIoU"] for entry in own]
        row: dict[str, Any] = {
            "runs": len(own),
            "epochs": own[0]["epochs"],
            "mean": statistics.mean(values),
            "spread": _spread(values),
        }
        student, teacher = own[0]["beside"]["student"], own[0]["beside"]["teacher"]
        paired = [entry["seed"] for entry in own if (student, entry["seed"]) in score]
        if paired and method not in (student, teacher) and not method.startswith("teacher"):
            gains = [score[method, seed] - score[student, seed] for seed in paired]
            both = np.mean([drawn(method, seed) - drawn(student, seed) for seed in paired], 0)
            leads = [lead for seed in paired if (lead := _lead(score, teacher, student, seed)) is not None]
            gap = statistics.mean(leads) if len(leads) == len(paired) else 0
            row |= {
                "gain": statistics.mean(gains),
                "gain_spread": _spread(gains),
                "gain_interval": bootstrap.interval(both),
                "gap_closed": statistics.mean(gains) / gap if gap > SMALL_GAP else None,
            }
        summary[method] = row
    return summary


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _lead(score: Mapping[tuple[str, int], float], teacher: str, student: str, seed: int) -> float | None:
    """The teacher's over the student; on CamVid one teacher serves all seeds."""
    of_seed = [value for (method, s), value in score.items() if method == teacher and s == seed]
    any_seed = [value for (method, _), value in score.items() if method == teacher]
    found = of_seed or (any_seed if len(any_seed) == 1 else [])
    return found[0] - score[student, seed] if found else None


def table(summary: Mapping[str, Mapping[str, Any]], methods: Iterable[str]) -> str:
    """Markdown, in percent and points."""
    lines = [
        "| | runs | epochs | mIoU | spread | gain over the student alone | spread | 95 % interval | gap closed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def points(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    for method, row in ((method, summary[method]) for method in methods if method in summary):
        low, high = row.get("gain_interval", (None, None))
        closed = row.get("gap_closed")
        cells = [NAMES.get(method, method), str(row["runs"]), str(row["epochs"])]
        cells += [points(row.get(key)) for key in ("mean", "spread", "gain", "gain_spread")]
        cells += [f"{points(low)} to {points(high)}" if low is not None else ""]
        cells += ["" if closed is None else f"{100 * closed:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _main(content: dict[str, Any]) -> str:
    return table(content["summary"], MAIN)


def _fair(content: dict[str, Any]) -> str:
    if not content["pace"]:
        return table(content["summary"], FAIR)
    pace, machine = content["pace"]["seconds a step"], content["pace"]["machine"]
    return (
        f"A step took {pace['student']:.2f} s alone and {pace['default']:.2f} s distilled ({machine['device']}, "
        f"{machine['cores']} cores, {machine['auto']}).\n\n{table(content['summary'], FAIR)}"
    )


def _dependence(content: dict[str, Any]) -> str:
    """Of plan.DEPENDENCE_SEEDS alone, also in the rows that the other tables have, too."""
    dataset, rows = content["dataset"], content["dependence"]
    planned = dict.fromkeys(task.method for task in plan.tasks(dataset, 0, dict.fromkeys(plan.RUNS, 0)))
    return table(rows, ["teacher", "student", "default", *(row for row in planned if row not in {*MAIN, *FAIR})])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"main": _main, "fair": _fair, "dependence": _dependence}


def rewrite_readme(readme: Path, results: Path) -> None:
    """Put each table of results/DATASET.json between README's `<!-- DATASET NAME -->` and `<!-- end -->`."""
    text = readme.read_text()
    for path in (results / f"{dataset}.json" for dataset in BLOCK):
        if not path.is_file():
            continue
        content = {"dataset": path.stem, **json.loads(path.read_text())}
        for name, make in TABLES.items():
            start = f"<!-- {path.stem} {name} -->"
            if start not in text:
                continue
            made = f"{start}\n{make(content)}\n<!-- end -->"
            text = re.sub(re.escape(start) + r".*?<!-- end -->", lambda _, made=made: made, text, flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    rewrite_readme(ROOT / "README.md", ROOT / "benchmark" / "results")
