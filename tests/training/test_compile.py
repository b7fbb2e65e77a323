"""TRAIN.compile: the same training, when it is chosen, and what becomes of a failure."""

import functools
import json
import logging

import pytest
import torch
from conftest import tiny_pspnet

from util import distributed
from util.train import compilation
from util.train.compilation import Compiled, wanted


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def backend(monkeypatch):
    """backend(function) makes torch.compile call `function` with each graph -> the list of graphs."""

    def use(function=None):
        graphs = []

        def compile_graph(graph, inputs):
            graphs.append(graph)
            return function(graph, inputs) if function else graph.forward

        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compile_graph))
        torch.compiler.reset()
        return graphs

    return use


def test_compiled_training_is_the_same(tiny, command, script, backend, tmp_path):
    """By Dynamo's tracing alone: generating code for a whole network takes longer than all other tests.

    One graph of student and teacher each, for all epochs: validation between them, of images of three sizes, neither
    compiles anything nor makes the next epoch compile again, and the eight images' last batch of two is left out.
    """
    graphs, found = backend(), []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        result = script("train_50_18.py", *command(folder, "TRAIN.compile", str(compiled), "TRAIN.batch_size", "3"))
        assert result.status == 0, result.err
        found.append(losses(folder))
        assert len(graphs) == 2 * compiled
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_failure_is_a_warning_and_the_run_goes_on(tiny, script, backend, caplog):
    def fail(graph, inputs):
        raise AssertionError("no such instruction")

    backend(fail)
    result = script("train_18.py", "--config", tiny.path, "TRAIN.compile", "True", "TRAIN.epochs", "2")
    assert result.status == 0, result.err
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "torch.compile failed" in warnings[0] and "no such instruction" in warnings[0]
    assert len(losses(tiny.out / "model")) == 2


def test_a_backward_pass_that_fails_to_compile_does_so_in_the_call(monkeypatch, caplog):
    """Else it would be Tensor.backward that fails, long after the way back."""
    from torch._dynamo.backends.common import aot_autograd

    def fail(graph, inputs):
        raise AssertionError("no such gradient")

    broken = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=fail)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    net = tiny_pspnet().train()
    image = torch.randn(2, 3, 33, 33)
    Compiled(net)(image).logits.sum().backward()
    assert "torch.compile failed" in caplog.text and net.cls[4].weight.grad is not None


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()])
def test_memory_that_runs_out_is_no_failure_to_compile(error, backend):
    def fail(graph, inputs):
        def call(*inputs):
            raise error

        return call

    backend(fail)
    with pytest.raises(type(error)):
        Compiled(tiny_pspnet())(torch.randn(1, 3, 33, 33))


def test_auto_compiles_where_a_gpu_and_a_long_run_pay_for_it(tiny, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("CXX", "true")
    train = tiny.load("TRAIN.train_h", "473", "TRAIN.train_w", "473", "TRAIN.batch_size", "16").train
    assert train.compile == "auto" and not wanted(train, 10**9, True) and not caplog.text
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: name)
    assert wanted(train, 10_000, True) and not wanted(train, 10_000, False) and not wanted(train, 1_000, True)
    assert "10000 steps save about 208 s" in caplog.text and "not compiling; 1000 steps save about 21 s" in caplog.text
    assert not wanted(train.model_copy(update={"compile": False}), 10**9, True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not wanted(train, 10_000, True) and "needs a C++ compiler" in caplog.text


def test_no_compiler(tiny, fails, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "TRAIN.compile needs a C++ compiler" in fails("train_18.py", "--config", tiny.path, "TRAIN.compile", "True")
