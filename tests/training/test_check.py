"""--check: finds what would stop a run, takes steps, writes nothing."""

import re

import numpy as np
import pytest
import torch
from conftest import tiny_pspnet
from PIL import Image


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def model(tiny):
    path = tiny.out / "n.pth"
    torch.save({"state_dict": tiny_pspnet().state_dict()}, path)
    return path


@pytest.mark.parametrize("name", ["train_18.py", "train_50_18.py"])
def test_training(tiny, command, script, name):
    before = files(tiny.out)
    keys = command(tiny.out / "run")
    if name == "train_18.py":
        keys = [word for pair in zip(keys[::2], keys[1::2], strict=True) if "DISTILL" not in pair[0] for word in pair]
    result = script(name, "--check", *keys, "TRAIN.workers", "1")
    assert result.status == 0 and result.err == "", result.err
    assert files(tiny.out) == before
    for words in (r"train.txt: 8 images are whole", r"val.txt: 3 images are whole", r"car +[\d,]+ pixels +\d+\.\d\d %",
                  r"a step of 2 crops of 33x33 on cpu in torch.float32: \d+\.\d\d s, ce \d",
                  "start anew in", "12 steps are left", "nothing was written"):  # fmt: skip
        assert re.search(words, result.out), words


def test_training_that_would_go_on(tiny, command, script, fails):
    assert script("train_50_18.py", *command(tiny.out / "run", "TRAIN.epochs", "1")).status == 0
    before = files(tiny.out)
    result = script("train_50_18.py", "--check", *command(tiny.out / "run", "TRAIN.epochs", "1"))
    assert result.status == 0 and "a finished run" in result.out
    assert "TRAIN.epochs (was 1, is 3)" in fails("train_50_18.py", "--check", *command(tiny.out / "run"))
    assert files(tiny.out) == before


@pytest.mark.parametrize("workers", ["0", "1"])
def test_every_bad_label_is_listed(tiny, command, script, workers):
    label = np.asarray(Image.open(tiny.root / "train0.png")).copy()
    label[3, 3] = 9
    Image.fromarray(label).save(tiny.out / "bad.png")
    lines = [f"{tiny.root}/train{i}.jpg {tiny.root}/train{i}.png\n" for i in range(6)]
    bad = [f"{tiny.root}/train0.jpg {tiny.out}/bad.png\n", f"{tiny.root}/train0.jpg {tiny.root}/train1.png\n"]
    (tiny.out / "list.txt").write_text("".join([*lines, *bad]))
    options = ["DATA.train_list", str(tiny.out / "list.txt"), "TRAIN.workers", workers]
    result = script("train_18.py", "--check", "--config", tiny.path, *options)
    assert result.status == 2
    assert "2 of 8 entries" in result.err and "holds the value 9" in result.err
    assert "holds the value 9" in result.out and "its image is" in result.out
    (tiny.out / "list.txt").write_text("".join([*lines, bad[0]]))
    result = script("train_18.py", "--check", "--config", tiny.path, *options)  # one is said once
    assert "1 of 7 entries" in result.err and "holds the value 9" in result.err and "value 9" not in result.out


def test_testing(tiny, script, fails, model):
    before = files(tiny.out)
    options = ["--check", "--config", tiny.path, "TEST.model_path", str(model)]
    result = script("test_18.py", *options)
    assert result.status == 0 and result.err == "", result.err
    assert "maps of 3 images" in result.out
    assert "gone.pth" in fails("test_50_18.py", *options, "TEST.model_path", "gone.pth")
    assert "lacks 3 of 3 maps" in fails("test_18.py", *options, "TEST.has_prediction", "True")
    assert files(tiny.out) == before


def test_a_folder_that_cannot_be_made(tiny, script):
    (tiny.out / "file").write_text("")
    result = script("train_18.py", "--check", "--config", tiny.path, "TRAIN.save_path", f"{tiny.out}/file/run")
    assert result.status == 2 and "TRAIN.save_path" in result.err


def test_unlabelled_images_count_in_the_step(tiny, command, script):
    (tiny.out / "more.txt").write_text(f"{tiny.root}/train0.jpg\n{tiny.root}/train1.jpg\n")
    more = ["DATA.unlabelled_list", str(tiny.out / "more.txt"), "TRAIN.unlabelled_per_batch", "1"]
    result = script("train_50_18.py", "--check", *command(tiny.out / "run", *more))
    assert result.status == 0, result.err
    assert "more.txt: 2 images are whole" in result.out and "a step of 3 crops of 33x33" in result.out
