# ruff: noqa: F401, F811 - fixtures of another file
"""DISTILL.cache with several processes, full disks, errors, and what a crop comes with."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import python, tiny_pspnet
from test_cache import cached, lines, records
from test_resume import same

from model.distill.classes import Mapped
from util import checkpoint, files
from util.data.loader import TrainData
from util.train.teacher_cache import TeacherCache


@pytest.mark.xdist_group("processes")
def test_two_processes_write_one_cache(tiny, command, cached):
    options = ["DISTILL.cache", tiny.out / "cache"]
    options += ["TRAIN.batch_size", "4"]
    result = python("train_50_18.py", *command(tiny.out / "two", *options), processes=2)
    assert result.returncode == 0, result.stderr
    assert cached("one", "TRAIN.batch_size", "4")[1] == 0


def parts(tiny):
    return [path.parent for path in (tiny.out / "cache").glob("*/run.json")]


def test_a_disk_without_room_is_said_before_the_first_step(tiny, command, fails, monkeypatch):
    monkeypatch.setattr(files, "free", lambda folder: 1000)
    line = fails("train_50_18.py", *command(tiny.out / "d", "DISTILL.cache", str(tiny.out / "cache")))
    assert "DISTILL.cache" in line and "logits" in line and not (tiny.out / "cache").exists()


def test_a_full_disk_ends_the_writing_not_the_run(tiny, cached, monkeypatch):
    def pwrite(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        folder, asked, log = cached("first")
    assert asked == 24 and log.count("warning: cannot write") == 1 and "No space left" in log
    assert cached("second")[1] == 24
    same(folder, tiny.out / "second")


def test_errors(tiny, command, fails):
    (tiny.out / "file").write_text("")
    for options, words in (
        (["TRAIN.manual_seed", ""], "DISTILL.cache needs a TRAIN.manual_seed"),
        (["DISTILL.cache", str(tiny.out / "file")], "cannot make or write"),
        (["DATA.train_list", "nowhere.txt"], "nowhere.txt (DATA.train_list) does not exist"),
        (["DISTILL.cache_gb", "1"], "DISTILL.cache_gb: the size is printed"),
    ):
        given = command(tiny.out / "run", "DISTILL.cache", str(tiny.out / "cache"), *options)
        assert words in fails("train_50_18.py", *given)


def test_check_predicts_and_writes_nothing(tiny, command, script):
    result = script("train_50_18.py", "--check", *command(tiny.out / "run", "DISTILL.cache", str(tiny.out / "cache")))
    assert result.status == 0 and "the teacher's outputs on 24 crops" in result.out
    assert not (tiny.out / "cache").exists()


def test_float16_holds_what_it_can(tiny, teacher, tmp_path):
    cfg = tiny.load(*teacher, "DISTILL.cache", str(tmp_path / "cache"))
    kept = TeacherCache(cfg, tiny_pspnet(), ["logits"])
    image = np.zeros((33, 33, 3), np.uint8)
    assert kept.read((1, 0), image).layers is None
    logits = torch.tensor([1e9, -1e9, 0.1, 3.0]).view(1, 4, 1, 1).expand(1, 4, 5, 5)
    found = kept.decode(kept.encode(type("O", (), {"layer": lambda self, name: logits})())).logits
    assert found[0, :, 0, 0].tolist() == [65504, -65504, pytest.approx(0.1, rel=1e-3), 3]


def test_crops_come_with_what_is_kept(tiny, teacher, tmp_path):
    cfg = tiny.load(*teacher, "DISTILL.cache", str(tmp_path / "cache"))
    kept = TeacherCache(cfg, tiny_pspnet(), ["logits"])
    data = TrainData(cfg.data, cfg.train, 0, kept)
    image, _, known = data[2, 3]
    assert known.keys == [(2, 3)] and known.layers is None
    maps = {"logits": torch.arange(100, dtype=torch.int16).view(1, 4, 5, 5)}
    kept.write(known, maps)
    assert torch.equal(data[2, 3][2].layers["logits"], maps["logits"][0])
    assert data[2, 2][2].layers is None and kept.read((2, 3), image + 1).layers is None
    assert checkpoint.exists(Path(kept.folder, "logits", "000002"))


def test_another_order_of_the_teachers_classes_is_another_cache(tiny, tmp_path):
    """As when the names in DISTILL.teacher_config have been corrected; the weights are the same."""
    torch.save({"state_dict": tiny_pspnet(18).state_dict()}, tmp_path / "t.pth")
    options = ["DISTILL.teacher_path", str(tmp_path / "t.pth"), "DISTILL.cache", str(tmp_path), "DISTILL.hints", "[]"]
    cfg, folders = tiny.load("DISTILL.teacher_layers", "18", *options), set()
    for groups in ([[0], [1], [2], [3]], [[1], [0], [2], [3]], [[1], [0], [2], [3]]):
        teacher = Mapped(tiny_pspnet(18), groups, True, torch.float32)
        folders.add(TeacherCache(cfg, teacher, ["logits"]).folder)
    assert len(folders) == 2
