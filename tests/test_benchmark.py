"""The benchmarks run; what they measure is not a test's business."""

import json

from conftest import python


def test_step(tmp_path):
    path = tmp_path / "step.json"
    sizes = "--crop 33 --batch 2 --classes 3 --repeats 1".split()
    result = python("benchmark/step.py", *sizes, "--json", path)
    assert result.returncode == 0, result.stderr
    results = json.loads(path.read_text())["results"]
    assert set(results) == {"teacher", "student", "distillation"}
    assert all(value > 0 for row in results.values() for value in row.values())
