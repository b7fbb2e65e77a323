"""Markdown tables of accuracy (evidence.py puts them into RESULTS.md and README.md) and speed.

python benchmark/tables.py benchmark/results/step-*.json benchmark/results/losses-*.json
"""

import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import animals, plan

ROOT = Path(__file__).resolve().parent.parent
NAMES = {
    "student": "student alone",
    plan.EQUAL_TIME: "student alone, equal time",
    plan.FLOAT32: "student alone, float32",
    "default": "distilled, default",
    "original": "distilled, the original's losses",
    **{name: f"distilled, `{name}`" for name in (*plan.METHODS, *plan.CAMVID) if name not in ("default", "original")},
    **{name: f"distilled, `{name}`" for name in animals.RECIPES if name != "default"},
    "student_equal_time": "student alone, time of a compiled GPU",
    "student_double": "student alone, twice the epochs",
}
MAIN = ("teacher", "student", plan.EQUAL_TIME, plan.FLOAT32, *plan.METHODS, *plan.CAMVID)
HEADLINE = ("teacher", "student", plan.EQUAL_TIME, "student_double", "default", "cwd")
ALONE = ("student", "student_equal_time", "student_double")  # of animals
NOT_RUN = "Not run yet."
H100 = ROOT / "benchmark/results/step-h100.json"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _interval(bounds: list[float] | None) -> str:
    return f"{_points(bounds[0])} to {_points(bounds[1])}" if bounds else ""


def scores(summary: Mapping[str, Mapping[str, Any]], methods: Iterable[str]) -> str:
    """Of `methods`, in percent of mIoU and points."""
    head = ["", "runs", "epochs", "mIoU", "spread", "gain over the student alone", "95 % interval", "gap closed"]
    rows = []
    for method, row in ((method, summary[method]) for method in methods if method in summary):
        closed = row.get("gap_closed")
        cells = [NAMES.get(method, method), str(row["runs"]), str(row["epochs"])]
        cells += [_points(row.get(key)) for key in ("mean", "spread", "gain")]
        rows.append([*cells, _interval(row.get("interval")), "" if closed is None else f"{100 * closed:.0f} %"])
    filled = [any(cells) for cells in zip(*rows, strict=True)]  # a column without any cell says nothing
    return table(itertools.compress(head, filled), (itertools.compress(cells, filled) for cells in rows))


def contrasts(rows: Iterable[Mapping[str, Any]]) -> str:
    """Method minus method, in points, and whether the interval leaves out zero."""
    found = []
    for row in rows:
        low, high = row["interval"]
        names = [NAMES.get(row[key], row[key]).removeprefix("distilled, ") for key in ("method", "other")]
        shown = "yes" if low > 0 or high < 0 else "no"
        found.append([*names, str(row["runs"]), _points(row["gain"]), _interval(row["interval"]), shown])
    return table(["method", "minus", "seeds", "difference", "95 % interval", "shown"], found)


def equal_time(content: Mapping[str, Any]) -> str:
    """On which machine's pace it rests."""
    pace, machine = content["pace"]["seconds a step"], content["pace"]["machine"]
    own = content["summary"]["student"]["epochs"]
    found = json.loads(H100.read_text())["results"]
    ratios = [found["distillation"]["ways"][way]["seconds"] / found["student"]["ways"][way]["seconds"]
              for way in ("ours", "compile")]  # fmt: skip
    gpu, compiled = (f"{ratio:.2f} ({math.ceil(own * ratio)} epochs)" for ratio in ratios)
    return (
        f"Equal time rests on one machine's pace: on {machine['cores']} cores of an {machine['device']} in\n"
        f"{machine['auto']} a step took {pace['student']:.2f} s alone and {pace['default']:.2f} s distilled, "
        f"{pace['default'] / pace['student']:.2f} times as long, hence\n"
        f"{content['summary'][plan.EQUAL_TIME]['epochs']} epochs. On an H100 the ratio of `step.py` is {gpu},\n"
        f"with TRAIN.compile {compiled}."
    )


def ablations(content: Mapping[str, Any]) -> str:
    """Of plan.ABLATION_SEEDS alone, also in the rows that the other tables have, too."""
    others = [row for row in content["ablations"] if row not in MAIN]
    return scores(content["ablations"], ["teacher", "student", "default", *others])


def of_animals(content: Mapping[str, Any]) -> dict[str, str]:
    """The tables of animals by their names; content: with the record of tuning under `tuned`."""
    summary, rows = content["summary"], content["summary contrasts"]
    questions = [method for method in summary if method.startswith("kl, ")]
    against_kl = [row for row in rows if row["method"] in questions]
    made = {
        "main": f"{notes_of(content['runs'])}\n\n{scores(summary, ['teacher', *ALONE, *animals.RECIPES])}",
        "contrasts": contrasts(row for row in rows if row not in against_kl),
        "equal time": scores(summary, [*ALONE, *animals.RECIPES]),
        "kl": f"{scores(summary, ['kl', animals.OTHER_TEACHER, *questions])}\n\n{contrasts(against_kl)}",
    }
    made = {name: text if content["runs"] else NOT_RUN for name, text in made.items()}
    made["rates"] = rates(content["tuned"]) if content["tuned"]["runs"] else NOT_RUN
    return {f"animals {name}": text for name, text in made.items()}


def notes_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """Which weights the backbones of `runs` began with, and whether more than one file taught."""
    found = {run["config"]["settings"].get("TRAIN.pretrained", "torchvision's ImageNet weights") for run in runs}
    taught = [run["beside"] for run in runs if run["beside"]["teacher"] == "teacher"]
    files = Counter(beside["teacher_file"] for beside in taught if "teacher_file" in beside)
    note = f"The backbones began with {' and with '.join(sorted(found))}."
    if len(files) > 1:
        counts = ", ".join(map(str, files.values()))
        note += f" The teacher was trained {len(files)} times, since its file was gone; students of each: {counts}."
    return note


def rates(tuned: Mapping[str, Any]) -> str:
    """mIoU of each method's tuning runs over learning rates, and which of its runs was taken."""
    score = animals.scores_of(tuned)
    rows = []
    for method in ("teacher", *animals.METHODS):
        cells = [_points(score.get(animals.rate_name(method, *rate))) for rate in animals.RATES]
        taken = animals.choice(method, score)
        if taken:
            rate = animals.chosen(method, score)["TRAIN.base_lr"]
            end = ", base_lr at the grid's end" if rate in (animals.BASE_LRS[0], animals.BASE_LRS[-1]) else ""
            cells += [taken.removeprefix(f"{method}, ") + end, _points(score[taken])]
        else:
            cells += ["", ""]
        rows.append([f"`{method}`", *cells])
    names = [animals.rate_name("", *rate).removeprefix(", ") for rate in animals.RATES]
    return table(["base_lr x head_lr_factor", *names, "taken", "its mIoU"], rows)


def headline(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for dataset, content in ((name, found[name]) for name in found if name not in plan.ADDED):
        for method, row in ((m, content["summary"][m]) for m in HEADLINE if m in content["summary"]):
            gain = f"{_points(row['gain'])} ({_interval(row['interval'])})" if "gain" in row else ""
            rows.append([dataset, NAMES.get(method, method), str(row["epochs"]), _points(row["mean"]), gain])
    return table(["", "", "epochs", "mIoU", "gain over the student alone (95 % interval)"], rows)


def rewrite(text: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """`text` with each table made anew between `<!-- DATASET NAME -->` and `<!-- end -->`."""
    made = {"headline": headline(found)}
    for dataset, content in found.items():
        if dataset == "animals":
            made |= of_animals(content)
            continue
        if dataset in plan.ADDED:
            made[f"{dataset} main"] = scores(content["summary"], content["summary"])
            made[f"{dataset} contrasts"] = contrasts(content["summary contrasts"])
            continue
        made[f"{dataset} main"] = scores(content["summary"], MAIN)
        made[f"{dataset} contrasts"] = contrasts(content["summary contrasts"])
        made[f"{dataset} equal time"] = equal_time(content)
        made[f"{dataset} ablations"] = ablations(content)
        made[f"{dataset} ablation contrasts"] = contrasts(content["ablations contrasts"])

    def replaced(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{made[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- ((?!end)[\w ]+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


def speed(title: str, found: Mapping[str, Any]) -> str:
    """The table of what a speed benchmark found, with the machine and the arguments."""
    groups = {"": found["results"]} if "ways" in found["results"] else found["results"]
    rows = [(group, way, row) for group, ways in groups.items() for way, row in ways["ways"].items()]
    keys = list(dict.fromkeys(key for *_, row in rows for key in row))
    cells = [[group, way, *(f"{row[key]:.4g}" if key in row else "" for key in keys)] for group, way, row in rows]
    notes = (" ".join(f"{k}={v}" for k, v in found[part].items()) for part in ("machine", "arguments"))
    return "\n\n".join([f"### {title}", *notes, table(["", "", *keys], cells)]) + "\n"


if __name__ == "__main__":
    print("\n".join(speed(path.stem, json.loads(path.read_text())) for path in map(Path, sys.argv[1:])))
