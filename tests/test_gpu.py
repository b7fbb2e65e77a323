"""What may differ on a GPU; on a CPU the same tests try their own logic. Random networks, generated images."""

import os
import signal
from argparse import Namespace
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_pspnet
from foreign import save, segformer
from PIL import Image
from test_resume import same
from two_processes import by_one_and_two

from benchmark.speed import step_variants
from util import distributed
from util.train.step import Stepper
from util.train.teacher_cache import TeacherCache

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once; deterministic matrix products need it
SIZE = Namespace(crop=65, batch=4, classes=4)
FLOAT32 = {"TRAIN.precision": "fp32", "DISTILL.precision": "fp32"}
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", GPU])
def device(request):
    yield request.param
    distributed.allow_tf32("fp32")


SLOW = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])  # others do it on a CPU


@pytest.fixture
def deterministic():
    """Operations without a deterministic kernel only warn: the bits are what the test compares."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def step_of(folder, keys, *changes):
    """The mean losses of four steps of distillation, and by how much they moved the weights."""
    step = step_variants.Step("distillation", SIZE, folder, keys, [step_variants.CHANGES[name] for name in changes])
    before = [p.detach().clone() for p in step.stepper.model.parameters()]
    for _ in range(4):  # CUDA graphs are recorded in the second, and replayed from the third on
        step()
    moved = [(p.detach() - b).flatten() for p, b in zip(step.stepper.model.parameters(), before, strict=True)]
    return step.stepper.metrics.means("the test"), torch.cat(moved).double()


def difference(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_of_other_classes(device, precision, tmp_path):
    """transformers' network, mapped, beside one of ours: all of it lies on the device."""
    pytest.importorskip("transformers", reason="requirements-teachers.txt is not installed")
    path = save(segformer, tmp_path / "segformer", ["road", "sky", "van", "lorry", "sea"])
    (tmp_path / "names.txt").write_text("sky\nland\nroad\ncar\n")
    keys = {"DISTILL.teacher_path": f"[{tmp_path}/teacher.pth, hf:{path}]", "DATA.names_path": tmp_path / "names.txt"}
    keys |= {"DISTILL.teacher_classes": "[null, {sky: [sky], road: [road], car: [van, lorry]}]"}
    keys |= {"DISTILL.weights.aux_mse": 0, "DISTILL.hints": "[{layer: logits, loss: cwd}]"}
    found, moved = step_of(tmp_path, keys | {"TRAIN.precision": precision})
    assert 0 < found["kl"] < 10 and 0 < found["cwd_logits"] < 10 and moved.isfinite().all()


def test_fp32_means_float32_and_tf32_does_not(device):
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64, 40, 40, device=device), torch.randn(64, 64, 3, 3, device=device)
    exact, error = F.conv2d(x.double(), weight.double()), {}
    for precision in ("fp32", "bf16", "tf32"):
        distributed.allow_tf32(precision)
        error[precision] = difference(F.conv2d(x, weight), exact)
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    assert error["fp32"] < 1e-5 and error["bf16"] < 1e-5
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        assert error["tf32"] > 1e-4


def test_a_bfloat16_step_is_float32s(device, tmp_path):
    """Each rounding is off by up to 0.4 %; the update was by 5 % on a CPU."""
    bfloat16 = dict.fromkeys(FLOAT32, "bf16")
    (losses, moved), (exact, expected) = (step_of(tmp_path, keys) for keys in (bfloat16, FLOAT32))
    assert losses == pytest.approx(exact, rel=0.01) and losses != exact
    assert difference(moved, expected) < 0.1


def test_layers_get_channels_last(device, tmp_path):
    """Each layer's input, and each convolution's gradient: another order would be copied, or take a slower kernel."""
    bfloat16 = {"TRAIN.precision": "bf16"}  # float32 on a CPU is trained in the plain order
    step, others = step_variants.Step("distillation", SIZE, tmp_path, bfloat16), set()

    def look(name, tensors):
        maps = (x[0] if isinstance(x, list) else x for x in tensors)  # a PyramidConv's other maps are tiny
        others.update(name for x in maps if not x.is_contiguous(memory_format=torch.channels_last))

    nets = {"teacher ": step.teacher.net, "": step.stepper.model}
    layers = {t + name: m for t, net in nets.items() for name, m in net.named_modules() if not list(m.children())}
    for name, module in layers.items():
        module.register_forward_pre_hook(lambda module, inputs, name=name: look(name, inputs))
        if isinstance(module, torch.nn.Conv2d) and not name.startswith("teacher"):
            module.register_full_backward_pre_hook(lambda module, gradients, name=name: look(f"of {name}", gradients))
    step()
    assert len(layers) > 100 and others == {"of cls.4", "of aux.4"}  # of scores, which the losses want class by class


def test_testing_gives_a_gpu_the_cpus_labels(device, tiny, script, monkeypatch):
    """In float32. Scores that are nearly equal may change places."""
    torch.save({"state_dict": tiny_pspnet().state_dict()}, tiny.out / "net.pth")
    maps = []
    for place in ("cpu", device):
        monkeypatch.setattr(torch.cuda, "is_available", lambda place=place: place == "cuda")
        keys = ["TEST.model_path", tiny.out / "net.pth", "TEST.save_folder", tiny.out / f"{len(maps)}"]
        assert script("test_18.py", "--config", tiny.path, *keys).status == 0
        files = sorted((tiny.out / f"{len(maps)}" / "gray").glob("*.png"))
        maps.append(np.concatenate([np.asarray(Image.open(file)).ravel() for file in files]))
    assert len(np.unique(maps[0])) > 1 and np.mean(maps[0] == maps[1]) > 0.999


@pytest.mark.gpu
def test_memory_that_runs_out_ends_in_one_line(tiny, fails, request):
    """On a CPU: test_memory.py."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    request.addfinalizer(lambda: torch.cuda.set_per_process_memory_fraction(1.0))
    line = fails("train_18.py", "--config", tiny.path)
    assert "out of memory" in line and "TRAIN.batch_size" in line


def test_a_stopped_run_resumes_bit_for_bit(device, deterministic, tiny, command, script, monkeypatch):
    def stop(self, parts, step, seed, real=Stepper.step):
        real(self, parts, step, seed)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, parts = tiny.out / "whole", tiny.out / "parts"
    assert script("train_50_18.py", *command(whole)).status == 0
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", stop)
        assert script("train_50_18.py", *command(parts)).status == 75
    assert script("train_50_18.py", *command(parts)).status == 0
    same(whole, parts)


def test_the_teachers_cache_gives_what_was_computed(device, deterministic, tiny, command, script, monkeypatch):
    first, second = tiny.out / "first", tiny.out / "second"
    cache = ["DISTILL.cache", str(tiny.out / "cache"), "DISTILL.precision", "bf16"]
    assert script("train_50_18.py", *command(first, *cache)).status == 0
    monkeypatch.setattr(TeacherCache, "encode", lambda *_: pytest.fail("a crop was computed again"))
    result = script("train_50_18.py", *command(second, *cache, "TRAIN.workers", "1"))
    assert result.status == 0, result.err
    same(first, second)


ONE_DEVICE = """
import runpy, sys, torch, torch.distributed
from torch import nn
sys.path.insert(0, ".")
from util import distributed
if torch.cuda.is_available():
    start, distributed.device = torch.distributed.init_process_group, lambda: torch.device("cuda", 0)
    torch.distributed.init_process_group = lambda backend, **options: start("gloo", **options)
else:
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@SLOW
@pytest.mark.xdist_group("processes")
def test_two_processes_on_one_device(device, tiny, command):
    """By gloo, since NCCL wants a GPU for each; the loss is one process's. A CPU's BatchNorm is not synchronised."""
    curves = [[line["loss"] for line in lines] for lines in by_one_and_two(tiny, command, ONE_DEVICE)]
    assert len(curves[0]) == 3 and curves[1] == pytest.approx(curves[0], rel=1e-5 if device == "cpu" else 1e-3)


@SLOW
def test_a_run_exports_to_onnx(device, tiny, script):
    pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
    assert script("train_18.py", "--config", tiny.path).status == 0
    options = ["--config", tiny.path, "--to", "onnx", "--images", "1", "--out", tiny.out / "net.onnx"]
    result = script("tool/export/export.py", *options)  # which compares the labels
    assert result.status == 0 and (tiny.out / "net.onnx").stat().st_size > 1000, result.err


ON_A_GPU = "foreach stream compiled-loss compile compile+stream reduce-overhead".split()
CHANGES = [("cpu", "foreach+stream+compiled-loss"), pytest.param("cpu", "compile", marks=pytest.mark.slow)]
CHANGES += [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ON_A_GPU]


@pytest.mark.parametrize(("device", "changes"), CHANGES)
def test_what_makes_a_step_faster_leaves_it_the_same(device, changes, tmp_path, monkeypatch):
    """Four steps in float32, all but the first with its graphs. A CPU has no streams.

    Without dropout: compiled code draws other random numbers from the same seed.
    """
    if "stream" in changes and device == "cpu":
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend="eager"))
        for name, fake in (("Stream", mock.MagicMock), ("current_stream", mock.MagicMock), ("stream", nullcontext)):
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    torch.compiler.reset()
    keys = FLOAT32 | {"TRAIN.dropout": 0.0}
    (losses, moved), (exact, expected) = step_of(tmp_path, keys, *changes.split("+")), step_of(tmp_path, keys)
    assert losses == pytest.approx(exact, rel=1e-4) and difference(moved, expected) < 1e-3
