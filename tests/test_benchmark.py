"""The benchmarks run, and their tables can be made; what they measure is not a test's business."""

import json

import pytest
from conftest import python

from benchmark import measure, tables

TINY = {
    "step": "--crop 33 --classes 3 --repeats 1 --kinds student",
    "testing": "--images 1 --height 40 --width 60 --crop 33 --base-size 60 --repeats 1 --workers 0",
    "input": "--images 4 --height 40 --width 60 --crop 33 --batch 2 --repeats 1 --steps 4 --workers 0",
    "startup": "--images 8 --crop 33 --workers 0 --repeats 1",
    "losses": "--crop 33 --classes 3 --repeats 1 --recipes mgd",
    "cache": "--crop 33 --steps 2 --repeats 1 --workers 0",
    "growth": "--crop 33 --crops 33 --batches 2 --class-counts 3 --process-counts 1 --repeats 1 --kinds student",
}


@pytest.mark.parametrize("name", TINY)
def test_benchmark(name, tmp_path):
    path = tmp_path / "out" / f"{name}.json"
    result = python(f"benchmark/{name}.py", *TINY[name].split(), "--json", path)
    assert result.returncode == 0, result.stderr
    found = json.loads(path.read_text())
    assert found["machine"]["threads"] >= 1 and found["results"]
    text = tables.render(path)
    assert text.count("\n|") >= 3 and "nan" not in text


def test_a_folder_that_is_no_checkout(tmp_path):
    result = python("benchmark/testing.py", *TINY["testing"].split(), "--semseg", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_turns_alternate_and_ratios_are_of_the_turn():
    order = []
    around = measure.contextlib.nullcontext
    ways = {name: measure.Variant(lambda name=name: order.append(name), around) for name in "ab"}
    times = measure.turns(ways, 2)
    assert "".join(order) == "aabb" * 3 and len(times["a"]) == 2
    summary = measure.summary({"a": [1.0, 4.0, 2.0], "b": [2.0, 8.0, 3.0], "floor": [1.0]}, "a")
    assert summary["b"]["ratio"] == 2.0 and summary["b"]["seconds"] == 3.0 and "floor" not in summary
