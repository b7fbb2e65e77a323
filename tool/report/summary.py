"""From pixel counts to the numbers of a comparison: scores, intervals and differences."""

from typing import Any

import numpy as np

from tool.report import bootstrap
from tool.report.runs import BORDER, INSIDE, Counts, Run
from util.evaluate.metric import iou
from util.evaluate.testing import protocol_line

FEW = 10  # images, or blocks of them; a bootstrap over fewer is too narrow (over one, it has no width)


def _gap_closed(scores, baseline: int | None, teacher: int | None):
    """(..., runs) mIoU -> share of the gap from student alone to teacher; None without both."""
    if baseline is None or teacher is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = scores[..., [teacher]] - scores[..., [baseline]]
        return (scores - scores[..., [baseline]]) / gap


def summarise(
    runs: list[Run], counts: Counts, costs: list[dict | None], resamples: int, block: int = 1
) -> dict[str, Any]:
    """The content of report.json. Scores are fractions; block: see bootstrap.draw."""
    names = [c["name"] for c in runs[0].metrics["classes"]]
    roles = [run.role for run in runs]
    student, teacher = (roles.index(role) if role in roles else None for role in ("student", "teacher"))
    regions = {"border": BORDER, "inside": INSIDE}
    by_region = {name: iou(*counts.pixels[:, :, region].sum(1).swapaxes(0, 1)) for name, region in regions.items()}
    whole = counts.pixels.sum(2)
    scores = iou(*whole.sum(1).swapaxes(0, 1))
    drawn = bootstrap.resampled_iou(whole, resamples, block)
    mean, drawn_mean = scores.mean(1), np.nanmean(drawn, 2)
    closed, drawn_closed = (_gap_closed(values, student, teacher) for values in (mean, drawn_mean))
    notes = _notes(runs, costs)
    if len(counts.valid) < FEW * block:
        notes.append(f"{len(counts.valid)} images are too few for intervals over images, which come out too narrow.")
    candidates = [r for r, role in enumerate(roles) if role == "distilled"] or range(len(runs))
    if closed is not None and bootstrap.interval(drawn_mean[:, teacher] - drawn_mean[:, student])[0] <= 0:
        closed = drawn_closed = None
        notes.append(
            "The teacher's lead over the student alone has an interval that includes zero: no share of the gap."
        )
    rows, differences = [], []
    for r, run in enumerate(runs):
        between = closed is not None and r not in (student, teacher)
        rows.append(
            {
                "name": run.name,
                "title": run.title,
                "role": run.role,
                "folder": str(run.folder),
                "mIoU": mean[r],
                "interval": bootstrap.interval(drawn_mean[:, r]),
                "mAcc": run.metrics["mAcc"],
                "allAcc": run.metrics["allAcc"],
                **{name: values[r].mean() for name, values in by_region.items()},
                "gap_closed": closed[r] if between else None,
                "gap_closed_interval": bootstrap.interval(drawn_closed[:, r]) if between else None,
                "classes": scores[r].tolist(),
                "layers": run.metrics["network"]["layers"],
                **(costs[r] or {"parameters": None, "GFLOP": None, "ms": None}),
                "protocol": protocol_line(run.metrics["protocol"]),
            }
        )
    for a in range(len(runs)):
        for b in range(a + 1, len(runs)):
            drawn_gain = drawn[:, b] - drawn[:, a]
            differences.append(
                {
                    "before": a,
                    "after": b,
                    "mIoU": mean[b] - mean[a],
                    "interval": bootstrap.interval(drawn_mean[:, b] - drawn_mean[:, a]),
                    **{name: (values[b] - values[a]).mean() for name, values in by_region.items()},
                    "fixed": counts.corrected[:, a, b].sum() / max(counts.valid.sum(), 1),
                    "broken": counts.corrected[:, b, a].sum() / max(counts.valid.sum(), 1),
                    "classes": (scores[b] - scores[a]).tolist(),
                    "class_intervals": [bootstrap.interval(values) for values in drawn_gain.T],
                }
            )
    return {
        "list": runs[0].metrics["protocol"]["list"],
        "images": len(counts.valid),
        "classes": names,
        "absent": [name for name, seen in zip(names, whole.sum((0, 1, 2)), strict=True) if not seen],
        "resamples": resamples,
        "block": block,
        "border_pixels": [int(counts.border.min()), int(counts.border.max())],
        "border_share": float((counts.pixels[0, :, BORDER, 1].sum()) / max(counts.valid.sum(), 1)),
        "baseline": student if student is not None else 0,
        "best": max(candidates, key=lambda r: mean[r]),
        "runs": rows,
        "differences": differences,
        "notes": notes,
    }


def _notes(runs: list[Run], costs: list[dict | None]) -> list[str]:
    """Warnings to the reader of the report."""
    notes = []
    values = {key: {str(run.metrics["protocol"].get(key)) for run in runs} for key in runs[0].metrics["protocol"]}
    unused = {"checkpoint", "list", "teacher", *(["crop"] if values["mode"] == {"whole"} else [])}
    differing = [key for key, found in values.items() if len(found) > 1 and key not in unused]
    if differing:
        notes.append(f"The runs were tested under different protocols: {', '.join(differing)} differ.")
    absent = [run.title for run, cost in zip(runs, costs, strict=True) if cost is None]
    if absent:
        notes.append(f"No checkpoint, so no cost: {', '.join(absent)}.")
    curveless = [run.title for run in runs if not run.history]
    if curveless:
        notes.append(f"No model/metrics.jsonl, so no training curves: {', '.join(curveless)}.")
    return notes
