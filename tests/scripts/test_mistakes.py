"""What the scripts say of mistakes in configs, lists and checkpoints."""

import re

import numpy as np
import pytest
import torch
from conftest import ROOT, python, tiny_pspnet
from PIL import Image


def test_help(script):
    result = script("train_50_18.py", "--help")
    assert result.status == 0
    for words in ("Distil the teacher", "SECTION.key VALUE", "python train_50_18.py TRAIN.epochs 2", "DISTILL.hints"):
        assert words in result.out


@pytest.mark.parametrize("path", ["gone.pth", "[gone.pth]"])
def test_teacher_that_is_not_there_says_which_command_makes_it(tiny, fails, path):
    line = fails("train_50_18.py", "--config", tiny.path, "DISTILL.teacher_path", path)
    assert "gone.pth" in line and "train_50.py" in line


def test_no_distill_section(tiny, fails):
    assert "DISTILL" in fails("train_50_18.py", "--config", tiny.path)


def test_teacher_without_aux_head(tiny, fails, script, tmp_path):
    state = {k: v for k, v in tiny_pspnet().state_dict().items() if not k.startswith("aux.")}
    torch.save({"state_dict": state}, tmp_path / "t.pth")
    options = ["--config", tiny.path, "DISTILL.teacher_layers", "18", "DISTILL.teacher_path", tmp_path / "t.pth"]
    assert "DISTILL.weights.aux_mse to 0" in fails("train_50_18.py", *options)
    assert script("train_50_18.py", *options, "DISTILL.weights.aux_mse", "0").status == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_bad_label_stops_with_its_name_and_value(tiny, fails, workers):
    for i in range(4):
        source = np.asarray(Image.open(tiny.root / "train0.png")).copy()
        source[3, 3] = 9
        Image.fromarray(source).save(tiny.out / f"bad{i}.png")
    (tiny.out / "list.txt").write_text("".join(f"{tiny.root}/train0.jpg {tiny.out}/bad{i}.png\n" for i in range(4)))
    options = ["DATA.train_list", tiny.out / "list.txt", "TRAIN.workers", workers]
    line = fails("train_18.py", "--config", tiny.path, *options)
    assert re.search(r"bad\d\.png holds the value 9", line)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["TRAIN.epoch", "2"], ["TRAIN.epochs"]),
        (["--confg", "x"], ["--confg"]),
        (["DATA.train_list", "gone.txt"], ["gone.txt", "DATA.train_list"]),
        (["DATA.names_path", "gone.txt"], ["gone.txt", "DATA.names_path"]),
        (["TRAIN.batch_size", "9"], ["8 images", "TRAIN.batch_size 9"]),
        (["TRAIN.accumulate", "4"], ["BatchNorm needs two", "TRAIN.accumulate"]),
        (["TRAIN.weight", "gone.pth"], ["gone.pth"]),
        (["TRAIN.resume", "gone.pth"], ["gone.pth"]),
        (["TRAIN.pretrained", "gone.pth"], ["gone.pth"]),
        (["DISTILL.teacher_path", "t.pth"], ["DISTILL", "train_50_18.py"]),
        (["TRAIN.new_head", "True"], ["new_head", "TRAIN.weight"]),
        (["TRAIN.class_weights", "[0, 0, 0, 0]"], ["class_weights are all zero"]),
        (["DISTILL.teacher_path", "t.pth", "DISTILL.precision", "tf32"], ["fp32 and tf32"]),
        (["DATA.label_map", "{'300 0 0': 0}"], ["DATA.label_map", "300 0 0"]),
        (["TRAIN.save_path", "/proc/none"], ["/proc/none", "TRAIN.save_path"]),
        (["TRAIN.base_lr", "1e20"], ["not finite", "ce", "TRAIN.base_lr"]),
    ],
)
def test_mistakes_in_training(tiny, fails, options, words):
    line = fails("train_18.py", "--config", tiny.path, *options)
    for word in words:
        assert word in line


def test_wrong_checkpoint_in_testing(tiny, fails):
    torch.save({"state_dict": tiny_pspnet(34).state_dict()}, tiny.out / "n.pth")
    line = fails("test_18.py", "--config", tiny.path, "TEST.model_path", tiny.out / "n.pth")
    assert "n.pth does not hold a PSPNet-18 of 4 classes" in line and "layer1.2" in line
    assert not (tiny.out / "result").exists()


def test_shapes_are_a_function_of_the_seed(tmp_path):
    folders = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        result = python("dataset/shapes/prepare.py", "--seed", seed, "--train", 3, "--val", 2, "--out", tmp_path / name)
        assert result.returncode == 0, result.stderr
        folders.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    assert folders[0] == folders[1] != folders[2]
    label = Image.open(tmp_path / "a" / "label" / "train_0000.png")
    assert label.mode == "P" and set(np.unique(np.asarray(label))) <= {*range(8), 255}
    assert 255 in np.asarray(label)


def test_cuda_is_picked_in_one_place():
    sources = [p for p in ROOT.rglob("*.py") if ".venv" not in p.parts and "tests" not in p.parts]
    assert not [p for p in sources if ".cuda()" in p.read_text()]
    assert [p.name for p in sources if "torch.device(" in p.read_text()] == ["distributed.py"]


def test_a_missing_checkpoint_names_those_that_are_there(tiny, fails, script):
    assert script("train_18.py", "--config", tiny.path).status == 0
    line = fails("test_18.py", "--config", tiny.path, "TEST.model_path", "", "TRAIN.epochs", "7")
    assert "train_epoch_7.pth does not exist" in line and "has train_epoch_1.pth" in line
