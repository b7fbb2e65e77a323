"""tool/export/export.py: the exported network gives PyTorch's labels at any size."""

import json
import logging
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_pspnet

from tool.export import runtime
from tool.export.graph import AdaptiveAvgPool, Exportable
from util import checkpoint

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SIZES = [(1, 33, 41), (2, 97, 65), (1, 50, 30), (1, 120, 177)]


FLOAT, INT8 = 1, 3  # onnx.TensorProto.DataType
REASON = "requirements-export.txt is not installed"


@pytest.fixture
def export(tiny):
    (tiny.out / "model").mkdir()
    torch.save({"state_dict": tiny_pspnet().state_dict()}, tiny.out / "model" / "train_epoch_1.pth")
    return ["tool/export/export.py", "--config", tiny.path, "--out", tiny.out / "student.file"]


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling(bins):
    for height, width in ((1, 1), (2, 5), (6, 12), (7, 11), (13, 60)):
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        assert torch.allclose(AdaptiveAvgPool(bins)(x), F.adaptive_avg_pool2d(x, bins))


def expected(image: np.ndarray) -> np.ndarray:
    """The logits of the network that the fixture saved, (N, classes, H, W), for normalised images."""
    with torch.no_grad():
        logits = tiny_pspnet()(torch.from_numpy(image)).logits
        return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=True).numpy()


def images(normalized: bool):
    rng = np.random.default_rng(0)
    for n, height, width in SIZES:
        rgb = rng.integers(0, 256, (n, 3, height, width)).astype(np.float32)
        normal = (rgb - np.array(MEAN, np.float32)[:, None, None]) / np.array(STD, np.float32)[:, None, None]
        yield (normal if normalized else rgb), expected(normal)


@pytest.mark.parametrize(
    "options", [pytest.param(["--int8", "--calibrate", "2"], marks=pytest.mark.full_width), ["--normalize"]]
)
def test_onnx(export, tiny, script, options):
    """One file for four sizes; 2, 3 and 6 do not divide the feature maps of some."""
    ort, onnx = (pytest.importorskip(name, reason=REASON) for name in ("onnxruntime", "onnx"))
    result = script(*export, "--to", "onnx", "--images", "2", *options)
    assert result.status == 0, result.err
    session = ort.InferenceSession(tiny.out / "student.file")
    for image, logits in images("--normalize" not in options):
        ours = session.run(None, {"image": image})[0]
        assert ours.shape == logits.shape and np.abs(ours - logits).max() < 1e-4 * np.abs(logits).max()
        assert (ours.argmax(1) == logits.argmax(1)).mean() >= 0.9999
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["classes"]) == ["sky", "land", "road", "car"]
    measured = json.loads((tiny.out / "student.file.json").read_text())
    assert len(measured["agreement"]) == 3 and all(row["equal_labels"] >= 0.9999 for row in measured["agreement"])
    assert {"PyTorch", "onnx"} <= set(measured["ms"])
    if "--int8" in options:
        assert 0 <= measured["int8"]["mIoU"] <= 1
        weights = onnx.load(tiny.out / "student.int8.onnx").graph.initializer
        size = {kind: sum(math.prod(w.dims) for w in weights if w.data_type == kind) for kind in (FLOAT, INT8)}
        assert size[INT8] > 10 * size[FLOAT]  # biases and scales stay float32
        small = ort.InferenceSession(tiny.out / "student.int8.onnx")
        assert small.run(None, {"image": image})[0].shape == logits.shape


def test_state_dict_is_a_checkpoint_of_the_student_alone(export, tiny, script, fails):
    assert script(*export, "--to", "state_dict").status == 0
    state, whole = checkpoint.network_state(tiny.out / "student.file", "student"), tiny_pspnet().state_dict()
    assert set(state) == {key for key in whole if not key.startswith("aux.")}
    assert all(torch.equal(value, whole[key]) for key, value in state.items())
    test = ["test_18.py", "--config", tiny.path, "TEST.model_path", tiny.out / "student.file"]
    assert script(*test).status == 0
    assert "was trained with DATA.mean" in fails(*test, "DATA.mean", "[0.0, 0.0, 0.0]")


def test_nothing_is_written_that_disagrees(export, tiny, fails, monkeypatch):
    pytest.importorskip("onnxruntime", reason=REASON)
    forward = Exportable.forward
    monkeypatch.setattr(Exportable, "forward", lambda self, image: -forward(self, image))
    assert "differs from" in fails(*export, "--to", "onnx", "--images", "1")
    assert not (tiny.out / "student.file").exists()


def test_log_levels_are_restored_after_an_error():
    logger = logging.getLogger("export")
    logger.setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), runtime.errors_only("export"):
        assert logger.level == logging.ERROR
        raise ZeroDivisionError
    assert logger.level == logging.INFO


def test_mistakes(export, fails, monkeypatch):
    assert "--int8 and --normalize need --to onnx" in fails(*export, "--to", "state_dict", "--int8")
    assert "onnx (which replaces TorchScript)" in fails(*export, "--to", "torchscript")
    assert "TEST.split test has no labels" in fails(*export, "--to", "onnx", "--int8", "TEST.split", "test")
    assert "does not hold a PSPNet-50" in fails(*export, "--to", "state_dict", "TRAIN.layers", "50")
    assert "--to" in fails(*export)
    distil = ["DISTILL.teacher_path", "t.pth", "TEST.teacher", "True"]
    assert "only TEST.model_path" in fails(*export, "--to", "state_dict", *distil)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "requirements-export.txt" in fails(*export, "--to", "onnx")
