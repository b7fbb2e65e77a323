"""TRAIN.compile: the same training, and one line where there is no compiler."""

import functools
import json

import pytest
import torch


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_compiled_training_is_the_same(tiny, script, monkeypatch, tmp_path):
    """By Dynamo's tracing alone: generating code for a whole network takes longer than all other tests."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        result = script("train_18.py", "--config", tiny.path, "TRAIN.compile", compiled, "TRAIN.save_path", folder)
        assert result.status == 0, result.err
        found.append(losses(folder))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_no_compiler(tiny, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "TRAIN.compile needs a C++ compiler" in fails("train_18.py", "--config", tiny.path, "TRAIN.compile", "True")
