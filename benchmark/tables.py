"""Markdown tables of what the benchmarks wrote: python benchmark/tables.py benchmark/results/*.json"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(row: dict[str, float]) -> str:
    return f"{row['seconds']:.3f} ({row['least']:.3f} to {row['most']:.3f})"


def step(results: dict[str, Any]) -> str:
    head = ["step", "way", "seconds", "times ours", "share of ceiling", "peak MiB", "of ours"]
    rows = []
    for kind, found in results.items():
        own = found["ways"]["ours"]["peak_MiB"]
        for name, way in found["ways"].items():
            share = f"{100 * way['share']:.0f} %"
            peak = [str(way["peak_MiB"]), f"{way['peak_MiB'] / own:.2f}x"]
            rows.append([kind, name, spread(way), f"{way['ratio']:.2f}x", share, *peak])
    notes = "; ".join(f"{k}: {r['GFLOP']:.0f} GFLOP, ceiling {r['ceiling']:.0f} GFLOP/s" for k, r in results.items())
    return f"{table(head, rows)}\n\n{notes}"


def testing(results: dict[str, Any]) -> str:
    head = ["way", "images/s", "times ours", "same labels"]
    rows = [
        [name, f"{way['images_a_second']:.2f}", f"{way['ratio']:.2f}x", f"{100 * way['same_labels']:.3f} %"]
        for name, way in results["ways"].items()
    ]
    return table(head, rows)


def input(results: dict[str, Any]) -> str:
    rows = [[name, f"{way['images_a_second']:.1f}", f"{way['ratio']:.2f}x"] for name, way in results["ways"].items()]
    text = table(["way", "images/s a core", "times ours"], rows)
    if "wait" in results:
        text += f"\n\nThe student's step waits for its data for {100 * results['wait']:.2f} % of the time."
    return text


def startup(results: dict[str, Any]) -> str:
    rows = [[name, spread(way)] for name, way in results["ways"].items()]
    return f"{table(['process', 'seconds'], rows)}\n\n{results['above']:.2f} s above."


def growth(results: dict[str, Any]) -> str:
    rows = [
        [kind, axis, value, f"{cell['seconds']:.3f}", str(cell["peak_MiB"])]
        for kind, axes in results["tables"].items()
        for axis, cells in axes.items()
        for value, cell in cells.items()
    ]
    text = table(["step", "what changes", "to", "seconds", "peak MiB"], rows)
    return f"{text}\n\nThe losses add {results['losses_in_logits']:.2f} full-size logits tensors."


def losses(results: dict[str, Any]) -> str:
    base = results["ways"]["kl"]["peak_MiB"]
    rows = [
        [name, spread(way), f"{way['ratio']:.2f}x", f"{way['peak_MiB'] - base:+}"]
        for name, way in results["ways"].items()
    ]
    return table(["recipe", "seconds a step", "times kl", "peak MiB beyond kl's"], rows)


def cache(results: dict[str, Any]) -> str:
    rows = [[name, spread(way), f"{way['ratio']:.2f}x"] for name, way in results["ways"].items()]
    text = table(["step", "seconds", "times the student alone"], rows)
    return f"{text}\n\n{results['bytes_a_crop'] / 1000:.1f} KB a crop."


KINDS: dict[str, Callable[[dict[str, Any]], str]] = {
    f.__name__: f for f in (step, testing, input, startup, growth, losses, cache)
}


def render(path: Path) -> str:
    """The section of one file; its name begins with the benchmark's (step-ideas.json)."""
    found = json.loads(path.read_text())
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    arguments = " ".join(f"{key}={value}" for key, value in found["arguments"].items())
    return f"### {path.stem}\n\n{machine}\n\n{arguments}\n\n{KINDS[path.stem.partition('-')[0]](found['results'])}\n"


if __name__ == "__main__":
    paths = [
        path for path in map(Path, sys.argv[1:]) if path.stem.partition("-")[0] in KINDS
    ]  # others are of results.py
    print("\n".join(map(render, paths)))
