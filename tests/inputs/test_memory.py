"""Memory that runs out ends in one line that says what to lower."""

import pytest
import torch

from util.evaluate.predict import Predictor
from util.train.step import Stepper


def exhaust(*_args, **_options):
    """A petabyte of the host's memory: PyTorch's own error."""
    torch.empty(1 << 50, dtype=torch.uint8)


def fail(error):
    def call(*_args, **_options):
        raise error

    return call


@pytest.mark.parametrize(
    "allocation", [exhaust, fail(MemoryError()), fail(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))]
)
def test_training(allocation, tiny, fails, monkeypatch):
    monkeypatch.setattr(Stepper, "_forward", allocation)
    line = fails("train_18.py", "--config", tiny.path)
    assert all(key in line for key in ("out of memory", "TRAIN.accumulate", "TRAIN.batch_size", "TRAIN.train_h"))


def test_testing(tiny, script, fails, monkeypatch):
    assert script("train_18.py", "--config", tiny.path).status == 0
    monkeypatch.setattr(Predictor, "_logits", exhaust)
    assert "TRAIN.batch_size_val" in fails("test_18.py", "--config", tiny.path)


def test_other_errors_keep_their_traceback(tiny, script, monkeypatch):
    monkeypatch.setattr(Stepper, "_forward", fail(RuntimeError("size mismatch")))
    with pytest.raises(RuntimeError, match="size mismatch"):
        script("train_18.py", "--config", tiny.path)
