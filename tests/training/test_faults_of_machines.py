"""Workers that die, file systems without locks or room."""

import errno
import os
import shutil
import time

import pytest
import torch
from conftest import tiny_pspnet

from util import checkpoint
from util.data import decode
from util.errors import UserError
from util.evaluate import predict
from util.files import BackgroundWriter
from util.stop import worker_death_as_user_error

DEATH = "DataLoader worker (pid 7) is killed by signal: Killed. "


@pytest.mark.parametrize("inside", ["image", "label", "checkpoint", "save"])
def test_a_workers_death_is_not_taken_for_a_damaged_file(tiny, monkeypatch, inside):
    """PyTorch raises it wherever the main process happens to be: there, in the middle of reading or writing a file."""

    def die(*_, **__):
        raise RuntimeError(DEATH)

    def write(*_, **__):  # as torch's zip writer, whose own complaint comes on top
        try:
            die()
        except RuntimeError:
            raise RuntimeError("unexpected pos 458176 vs 458072")  # noqa: B904

    calls = {
        "image": ("PIL.Image.open", die, lambda: decode.read_image(tiny.root / "val0.jpg", None)),
        "label": ("numpy.asarray", die, lambda: decode.read_label(tiny.root / "val0.png", (40, 56), 4, 255)),
        "checkpoint": ("torch.load", die, lambda: checkpoint.read(tiny.out / "x.pth")),
        "save": ("torch.save", write, lambda: checkpoint.save({}, tiny.out / "y.pth")),
    }
    torch.save({}, tiny.out / "x.pth")
    name, fault, call = calls[inside]
    monkeypatch.setattr(name, fault)
    with pytest.raises(UserError, match="a process that loads images died"), worker_death_as_user_error():
        call()


def test_without_locks_a_run_goes_on(tiny, script, monkeypatch, caplog):
    """Some network file systems have none: that is no other run."""

    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", lockf)
    assert script("train_18.py", "--config", tiny.path).status == 0
    assert "cannot be locked (No locks available)" in caplog.text


def test_a_map_that_cannot_be_written_stops_the_test_at_once(tiny, fails, monkeypatch):
    """Not after the last image; and no more than a few wait for the disk."""
    seen = []

    def labels(self, *arguments, real=predict.Predictor.labels):
        seen.append(1)
        return real(self, *arguments)

    def full(*_):
        raise UserError("cannot write a.png (No space left on device)")

    torch.save({"state_dict": tiny_pspnet().state_dict()}, tiny.out / "n.pth")
    names = [f"{tiny.out}/{i}.jpg {tiny.root}/val0.png\n" for i in range(40)]
    for i in range(40):
        shutil.copy(tiny.root / "val0.jpg", tiny.out / f"{i}.jpg")
    (tiny.out / "list.txt").write_text("".join(names))
    monkeypatch.setattr(predict.Predictor, "labels", labels)
    monkeypatch.setattr("util.evaluate.testing.write_maps", full)
    options = ["--config", tiny.path, "TEST.model_path", tiny.out / "n.pth", "TEST.test_list", tiny.out / "list.txt"]
    assert "No space left" in fails("test_18.py", *options)
    assert len(seen) <= 6


def test_few_writes_wait_for_a_slow_disk():
    """Else a test of many images keeps them all in memory."""
    writer, written = BackgroundWriter(pending=2), []

    def write(number):
        time.sleep(0.01)
        written.append(number)

    for number in range(12):
        writer.submit(write, number)
        assert number + 1 - len(written) <= 2
    writer.flush()
    assert written == list(range(12))
    writer.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.flush()
