"""The machine around a run: processes that do not meet, shared memory, memory, stop requests, what is optional."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import CLASSES, ROOT, tiny_pspnet
from torch import Tensor

from util import config, stop
from util.data import loader
from util.data.loader import InSharedMemory
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.protocol import protocol_for_testing


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29555"}, "MASTER_ADDR is missing"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "x", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is 'x'"),
    ],
)
def test_variables_of_several_processes(tiny, fails, monkeypatch, variables, words):
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = fails("train_18.py", "--config", tiny.path)
    assert words in line and "torchrun" in line


def test_a_port_that_is_taken(tiny, fails, monkeypatch):
    def refuse(*_, **__):
        raise torch.distributed.DistNetworkError("address already in use\nmore")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    line = fails("train_18.py", "--config", tiny.path)
    assert "process 1 cannot meet the others at 10.0.0.1:29500 (address already in use)" in line


def test_shared_memory_that_is_too_small_is_an_error_and_no_hang(tiny, fails, monkeypatch):
    """In the worker: PyTorch's own sending fails in a thread, and the run would wait for ever."""

    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)  # workers are forked, and inherit it
    line = fails("train_18.py", "--config", tiny.path, "TRAIN.workers", "1")
    assert "/dev/shm" in line and "--shm-size" in line and "TRAIN.workers" in line
    torch.save({"state_dict": tiny_pspnet().state_dict()}, tiny.out / "n.pth")
    options = ["TEST.model_path", tiny.out / "n.pth", "TRAIN.workers", "1"]
    assert "/dev/shm" in fails("test_18.py", "--config", tiny.path, *options)


def test_check_compares_the_batches_on_their_way_with_shared_memory(tiny, fails, monkeypatch):
    usage = type("Usage", (), {"total": 64e6, "used": 0, "free": 1000})
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: usage)
    line = fails("train_18.py", "--check", "--config", tiny.path, "TRAIN.workers", "2")
    assert "of batches would be on their way at once" in line and "64.0 MB in all" in line


def test_items_are_shared_in_workers_alone():
    assert not InSharedMemory(lambda samples: (torch.zeros(3), None))([])[0].is_shared()


def test_labels_made_of_some_classes_at_a_time_are_the_same(tiny, monkeypatch):
    cfg = tiny.load("TEST.scales", "[0.8, 1.0]", "TEST.flip", "True")
    predictor = predict.Predictor(tiny_pspnet(), cfg, protocol_for_testing(cfg), torch.float32)
    image = torch.rand(40, 56, 3, generator=torch.Generator().manual_seed(0)) * 255
    scaled = [image[:32, :45], image]
    whole = predictor(scaled, (70, 90)).argmax(0)
    assert len(whole.unique()) > 1
    for largest in (1, 2 * 70 * 90, 3 * 70 * 90, 1 << 27):
        monkeypatch.setattr(predict, "LARGEST", largest)
        assert torch.equal(predictor.labels(scaled, (70, 90)), whole.to(torch.uint8))
    assert predictor.data.classes == CLASSES


def test_a_stop_request_ends_a_step_that_does_not(tmp_path):
    """A loader that hangs: the process leaves by itself, with the status of a stop."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from util import stop
stop.PATIENCE = 0.5
with stop.Interrupt():
    print("ready", flush=True)
    while True:
        time.sleep(1)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == stop.EX_TEMPFAIL and time.monotonic() - began < 20
    assert error.startswith("error: told to stop") and len(error.splitlines()) == 1


def test_no_timer_is_left_behind():
    with stop.Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.stop_requested(sync=True) and interrupt.timer.is_alive()
    interrupt.timer.join(5)
    assert not interrupt.timer.is_alive()


def test_ctrl_c_outside_training_is_one_line(tiny, script, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "load", interrupted)
    result = script("test_18.py", "--config", tiny.path)
    assert result.status == 130 and result.err == "error: interrupted\n"


def test_a_val_list_is_optional_where_nothing_is_validated(tiny, script, fails):
    options = ["--config", tiny.path, "DATA.val_list", "", "TRAIN.evaluate", "False"]
    assert script("train_18.py", *options).status == 0
    assert "TRAIN.evaluate needs a DATA.val_list" in fails("train_18.py", *options[:-1], "True")


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("TRAIN.epochs", "010", "TRAIN.epochs: input should be a valid integer, not '010'"),
        ("TRAIN.epochs", "1:30", "TRAIN.epochs: input should be a valid integer, not '1:30'"),
        ("TRAIN.base_lr", "1:30.5", "TRAIN.base_lr: input should be a valid number, not '1:30.5'"),
        ("DATA.classes", "1", "classes counts the background"),
    ],
)
def test_numbers_that_are_not_meant(tiny, key, text, words):
    with pytest.raises(UserError, match=words):
        tiny.load(key, text)


def test_home_is_expanded(tiny, monkeypatch):
    monkeypatch.setenv("HOME", "/users/a")
    cfg = tiny.load("DATA.data_root", "~/data", "TRAIN.save_path", "~/exp/model", "TEST.model_path", "")
    assert cfg.data.data_root == "/users/a/data" and cfg.test.model_path == "/users/a/exp/model/train_epoch_1.pth"


def test_a_relative_list_that_is_missing_names_the_working_directory(tiny, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = fails("train_18.py", "--config", tiny.path, "DATA.train_list", "lists/train.txt")
    assert f"lists/train.txt (DATA.train_list) does not exist in {tmp_path}" in line
    assert not (tiny.out / "model" / "metrics.jsonl").exists()


def test_lists_are_looked_at_before_a_download(tiny, fails, monkeypatch):
    def download(*_, **__):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    options = ["TRAIN.pretrained", "imagenet", "DATA.train_list", "gone.txt"]
    assert "gone.txt" in fails("train_18.py", "--config", tiny.path, *options)
