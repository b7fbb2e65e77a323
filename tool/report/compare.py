"""Compare tested runs: scores with intervals, gains by class, cost, and an HTML page.

    python tool/report/compare.py exp/shapes/pspnet50 exp/shapes/pspnet18 exp/shapes/pspnet50_18 [--out FOLDER]

EXP is the folder of a tested run: result/metrics.json, result/gray, and model/metrics.jsonl for the
curves. Prints Markdown, and writes report.md, report.json and report.html (one file that works
offline) to FOLDER, by default the one that holds all runs.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tool.report import bootstrap, cost, page, runs, summary
from util.errors import UserError
from util.evaluate.comparison import verdict
from util.evaluate.outputs import check_outputs
from util.files import replace_text
from util.run import Parser, errors_in_one_line


def _percent(value: float, interval: list[float] | None = None, sign: str = "", digits: int = 2) -> str:
    text = f"{100 * value:{sign}.{digits}f}"
    return text if interval is None else f"{text} [{' … '.join(f'{100 * v:{sign}.{digits}f}' for v in interval)}]"


def _number(value: float | None, scale: float = 1, digits: int = 1) -> str:
    return "–" if value is None else f"{value / scale:.{digits}f}"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, padded for a terminal: first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [[header[0].ljust(widths[0]), *(h.rjust(w) for h, w in zip(header[1:], widths[1:], strict=True))]]
    lines.append(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for first, *rest in rows:
        lines.append([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))])
    return [f"| {' | '.join(line)} |" for line in lines]


def headline(report: dict[str, Any]) -> str:
    """The main result in one to three sentences."""
    roles, best = [run["role"] for run in report["runs"]], report["runs"][report["best"]]
    if {"teacher", "student", "distilled"} <= set(roles):
        teacher, student = (report["runs"][roles.index(role)] for role in ("teacher", "student"))
        change = difference(report, roles.index("student"), report["best"])
        means = " → ".join(_percent(run["mIoU"], digits=1) for run in (student, best)) + " %"
        what = best["title"] if roles.count("distilled") == 1 else f"{best['title']}, the best distilled run"
        rise, low, high = (_percent(v, sign="+", digits=1) for v in (change["mIoU"], *change["interval"]))
        gain = f"{student['title']} → {what}: mIoU {means}, {rise} points ({low} … {high} over images; one run each). "
        if change["interval"][0] <= 0 <= change["interval"][1]:
            gain += "The interval includes zero. "
        return gain + verdict(teacher["mIoU"], student["mIoU"], best["mIoU"])
    score = _percent(best["mIoU"], best["interval"], digits=1)
    return f"{best['title']} has the highest mIoU of {len(roles)} runs, {score} %."


def difference(report: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    return next(d for d in report["differences"] if (d["before"], d["after"]) == (before, after))


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables. Scores in percent, differences in percentage points."""
    entries, base = report["runs"], report["baseline"]
    rows = []
    for run in entries:
        row = [run["title"], _percent(run["mIoU"], run["interval"]), _percent(run["mAcc"]), _percent(run["allAcc"])]
        row += [_percent(run["border"]), _percent(run["inside"])]
        row.append("–" if run["gap_closed"] is None else _percent(run["gap_closed"], run["gap_closed_interval"], "", 0))
        row += [_number(run["parameters"], 1e6), _number(run["GFLOP"]), _number(run["ms"])]
        rows.append(row)
    columns = ["run", "mIoU % [95 %]", "mAcc", "pixel acc.", "border mIoU", "inside mIoU", "gap closed %"]
    text = [f"# {report['title']}", "", report["headline"], ""]
    if report["notes"]:
        text += [*(f"- **{note}**" for note in report["notes"]), ""]
    text += _table([*columns, "M param.", "GFLOP", "ms"], rows)
    if report["differences"]:
        rows = []
        for change in report["differences"]:
            before, after = (entries[change[key]]["title"] for key in ("before", "after"))
            row = [f"{before} → {after}", _percent(change["mIoU"], change["interval"], "+")]
            row += [_percent(change[key], sign="+") for key in ("border", "inside")]
            rows.append(row + [_percent(change[key]) for key in ("fixed", "broken")])
        columns = ["change", "mIoU [95 %]", "border", "inside", "pixels fixed %", "pixels broken %"]
        text += ["", *_table(columns, rows)]
    rows = []
    for i, name in enumerate(report["classes"]):
        gains = [
            _percent(run["classes"][i] - entries[base]["classes"][i], sign="+")
            for run in entries
            if run is not entries[base]
        ]
        rows.append([name, *(_percent(run["classes"][i]) for run in entries), *gains])
    gained = [f"{run['title']}, gain" for run in entries if run is not entries[base]]
    text += ["", *_table(["IoU %", *(run["title"] for run in entries), *gained], rows), "", *report["reading"]]
    return "\n".join(text) + "\n"


def reading(report: dict[str, Any], setting: str) -> list[str]:
    """How to read the tables: what was measured, and on what."""
    low, high = report["border_pixels"]
    width = f"{low}" if low == high else f"{low} to {high}"
    unit = "images" if report["block"] == 1 else f"blocks of {report['block']} consecutive images"
    return [
        f"- {report['images']} images of {report['list']}. Intervals: {100 * bootstrap.LEVEL:.0f} %, bootstrap over "
        f"{unit} ({report['resamples']} resamples, the same for all runs, so differences are paired). They include the "
        "variation between images of this kind, not that between training seeds. Images of one video are not "
        "independent: --block N resamples N consecutive ones together.",
        f"- Gains are against {report['runs'][report['baseline']]['title']}, in percentage points.",
        f"- Border: pixels within {width} px of another label, {_percent(report['border_share'], digits=0)} % of those "
        "that count; inside: the rest. Fixed: wrong before, right after; broken: the reverse.",
        f"- Cost: {setting}, one forward pass without flip, no auxiliary head; a multiply-add is two FLOP.",
        *(f"- {run['title']}: {run['protocol']}" for run in report["runs"]),
    ]


def block_size(entries: list[runs.Run], given: int | None) -> int:
    """How many consecutive images to resample together: `given`, else DATA.video_block.

    Raises UserError where the images are fewer than two blocks: all resamples would be nearly the
    whole list, and the intervals far too narrow.
    """
    block, images = given or max(run.data.video_block for run in entries), entries[0].metrics["images"]
    if block > 1 and 2 * block > images:
        raise UserError(f"blocks of {block} images need at least {2 * block} images, not {images}; set --block lower")
    return block


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("exp", nargs="+", type=Path, metavar="EXP")
    option("--out", type=Path, help="where the report goes (default: the folder that holds all EXP)")
    option("--teacher", type=Path, metavar="EXP", help="which run is the teacher, if depths do not tell")
    option("--student", type=Path, metavar="EXP", help="which run is the student alone")
    option("--scenes", type=int, default=24, help="images in the page (default: %(default)s)")
    option("--resamples", type=int, default=2000, help="of the bootstrap, 100 or more (default: %(default)s)")
    option("--block", type=int, metavar="N", help="consecutive images resampled together (default: DATA.video_block)")
    option("--border", type=float, default=0.01, help="border width by the image's diagonal (default: %(default)s)")
    option("--repeats", type=int, default=5, help="timed passes; 0 leaves time out (default: %(default)s)")
    with errors_in_one_line():
        arguments = parser.parse_args()
        if arguments.resamples < 100 or arguments.scenes < 0 or arguments.repeats < 0 or not 0 < arguments.border < 1:
            raise UserError("--resamples must be 100 or more, --scenes and --repeats 0 or more, --border in 0 .. 1")
        if arguments.block is not None and arguments.block < 1:
            raise UserError("--block must be 1 or more")
        entries = runs.read_all(arguments.exp, arguments.teacher, arguments.student)
        block = block_size(entries, arguments.block)
        pairs = runs.pairs_of(entries[0])
        size = cost.input_size(entries[0], pairs[0].image)
        costs = cost.measure(entries, size, arguments.repeats)
        counts = runs.count(entries, pairs, arguments.border)
        report = summary.summarise(entries, counts, costs, arguments.resamples, block)
        report["title"] = f"Report on {report['images']} images of {report['list']}"
        report["headline"] = headline(report)
        report["reading"] = reading(report, cost.setting(size))
        text = markdown(report)
        out = arguments.out or Path(os.path.relpath(os.path.commonpath([run.folder.resolve() for run in entries])))
        written = [out / f"report.{name}" for name in ("md", "json", "html")]
        check_outputs(written, [path for pair in pairs for path in pair])
        html = page.build(report, entries, pairs, counts, arguments.scenes)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, content in (("md", text), ("json", json.dumps(report, indent=1) + "\n"), ("html", html)):
                replace_text(out / f"report.{name}", content)
        except OSError as error:
            raise UserError(f"cannot write to {out} (--out): {error.strerror}") from None
        print(f"{text}\nwritten to {out}/report.md and report.json; open {out / 'report.html'} in a browser")


if __name__ == "__main__":
    main()
