"""What machines and data do to a run: full disks, NaN, signals to every process, no network. Long form: make faults."""

import errno
import os
import re
import signal
import time
import urllib.error

import pytest
import torch
from conftest import tiny_pspnet
from test_resume import same, start

import model.loss
from util import checkpoint
from util.evaluate import predict
from util.train.step import Stepper


def test_disk_full(tiny, command, whole, script, fails, monkeypatch):
    """One error, the older checkpoint is whole, no half file; with room again the run ends as if nothing had been."""
    parts = tiny.out / "parts"
    left = [4]  # files that still fit

    def full(number, real=os.fsync):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = fails("train_50_18.py", *command(parts))
    assert re.search(r"cannot write \S+\.pth \(No space left on device\)", line)
    assert not list(parts.glob(".*.tmp"))
    assert all(checkpoint.read(path) for path in parts.glob("*.pth"))
    assert script("train_50_18.py", *command(parts)).status == 0
    same(whole, parts)


def spoil(monkeypatch, steps):
    """Make the cross entropy of some steps NaN (of the run, from 1)."""
    calls = []

    def supervised_losses(*arguments, real=model.loss.supervised_losses):
        terms = real(*arguments)
        calls.append(1)
        if len(calls) in steps:
            terms["ce"] = terms["ce"] * float("nan")
        return terms

    monkeypatch.setattr(model.loss, "supervised_losses", supervised_losses)


def test_nan_stops_and_names_step_and_term(tiny, command, fails, monkeypatch):
    folder = tiny.out / "run"
    spoil(monkeypatch, {6})
    line = fails("train_50_18.py", *command(folder, "TRAIN.print_freq", "100"))
    assert "not finite: ce, loss, in step 6" in line and "kl" not in line
    assert [path.name for path in folder.glob("train*.pth")] == ["train_epoch_1.pth"]
    assert not checkpoint.not_finite(checkpoint.read(folder / "train_epoch_1.pth")["state_dict"])


def test_weights_that_are_not_finite_are_not_saved(tiny, command, fails, monkeypatch):
    """The last step's loss is finite, and its gradient is not."""

    def step(self, real=torch.optim.SGD.step, taken=[]):  # noqa: B006 - counts the calls
        taken.append(1)
        if len(taken) == 4:
            self.param_groups[0]["params"][0].grad[0] = float("inf")
        return real(self)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    folder = tiny.out / "run"
    line = fails("train_50_18.py", *command(folder))
    assert "not finite after step 4: layer0.0.weight" in line
    assert not list(folder.glob("*.pth"))


def test_signal_to_every_process(tiny, command, whole, script):
    """scancel and torchrun signal the whole group, workers too: still a checkpoint and status 75, and no hang."""
    parts = tiny.out / "parts"
    process = start(command(parts, "TRAIN.workers", "2", "TRAIN.evaluate", "False"), start_new_session=True)
    for line in process.stdout:
        if "epoch 1/3, step 1" in line:
            break
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert time.monotonic() - began < 30 and "error" not in out
    assert script("train_50_18.py", *command(parts)).status == 0
    same(whole, parts)


@pytest.mark.parametrize("end", ["signal", "kill"])
def test_end_in_validation(tiny, command, whole, script, monkeypatch, end):
    """The epoch's steps are not repeated."""
    parts = tiny.out / "parts"

    class Killed(BaseException):
        pass

    def confusion(*arguments, real=predict.confusion_matrix):
        if end == "kill":
            raise Killed
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "confusion_matrix", confusion)
        if end == "kill":
            with pytest.raises(Killed):
                script("train_50_18.py", *command(parts))
        else:
            assert script("train_50_18.py", *command(parts)).status == 75
    assert [path.name for path in parts.glob("*.pth")] == ["interrupted.pth"]
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(
            Stepper,
            "step",
            lambda self, parts, number, seed, real=Stepper.step: (
                steps.append(number) or real(self, parts, number, seed)
            ),
        )
        assert script("train_50_18.py", *command(parts)).status == 0
    assert steps == list(range(4, 12))
    same(whole, parts)


def test_a_folder_that_cannot_be_written(tiny, fails):
    (tiny.out / "file").write_text("")
    assert "TRAIN.save_path" in fails(
        "train_18.py", "--config", tiny.path, "TRAIN.save_path", tiny.out / "file" / "run"
    )


def test_network_gone(tiny, command, fails, script, monkeypatch, tmp_path):
    """ImageNet weights that do not come are one error; a run that goes on from a checkpoint does not ask for them."""

    def gone(*_, **__):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", gone)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", gone)
    folder = tiny.out / "run"
    line = fails("train_50_18.py", *command(folder, "TRAIN.pretrained", "imagenet"))
    assert "Network is unreachable" in line and "TRAIN.pretrained" in line
    assert script("train_50_18.py", *command(folder)).status == 0
    (folder / "train_epoch_3.pth").unlink()
    assert script("train_50_18.py", *command(folder, "TRAIN.pretrained", "imagenet")).status == 0


def test_no_whole_checkpoint(tiny, command, script, caplog):
    """A run does not begin anew in silence: its weights could be other ones."""
    folder = tiny.out / "run"
    folder.mkdir()
    (folder / "train_epoch_1.pth").write_bytes(b"PK")
    result = script("train_50_18.py", *command(folder, "TRAIN.epochs", "1"))
    assert result.status == 2 and "no checkpoint in" in result.err and "renamed to" in caplog.text
    assert (folder / "train_epoch_1.pth.corrupt").is_file()
    assert script("train_50_18.py", *command(folder, "TRAIN.epochs", "1")).status == 0


def test_changed_teacher(tiny, command, script, fails):
    folder = tiny.out / "run"
    assert script("train_50_18.py", *command(folder, "TRAIN.epochs", "1")).status == 0
    other = tiny_pspnet(seed=1)
    torch.save({"state_dict": other.state_dict()}, tiny.out / "teacher.pth")
    options = command(folder, "TRAIN.epochs", "1", "DISTILL.teacher_path", str(tiny.out / "teacher.pth"))
    assert "content of DISTILL.teacher_path" in fails("train_50_18.py", *options)
