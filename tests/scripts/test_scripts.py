"""The scripts themselves, tiny, on the CPU."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import python, tiny_pspnet
from PIL import Image

from util import checkpoint

TERMS = {"ce", "aux_ce", "kl", "aux_mse"}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_six_scripts(tiny, script):
    """The whole experiment: train and test the three networks, each from its own script."""

    def paths(run):
        model = f"{tiny.out}/{run}/model"
        keys = (
            f"TRAIN.save_path {model} TEST.model_path {model}/train_epoch_1.pth TEST.save_folder {tiny.out}/{run}/out"
        )
        return ["--config", tiny.path, *keys.split(), "TRAIN.evaluate", "True", "TRAIN.pictures", "1"]

    distill = ["DISTILL.teacher_path", f"{tiny.out}/t/model/train_epoch_1.pth"]
    distill += ["TEST.compare.teacher", f"{tiny.out}/t/out/metrics.json"]
    distill += ["TEST.compare.student", f"{tiny.out}/s/out/metrics.json"]
    for name, run, options in (
        ("50", "t", ["TRAIN.layers", "50"]),
        ("18", "s", []),
        ("50_18", "d", distill),
    ):
        trained = script(f"train_{name}.py", *paths(run), *options)
        assert trained.status == 0, trained.err
        (line,) = lines(tiny.out / run / "model")
        assert set(line) >= {"epoch", "lr", "loss", "ce", "aux_ce", "train_mIoU", "val_mIoU", "val_mAcc", "val_allAcc"}
        assert (set(line) & TERMS == TERMS) == (name == "50_18")
        tested = script(f"test_{name}.py", *paths(run), *options)
        assert tested.status == 0, tested.err
        check_results(tiny.out / run / "out", tested.out)
    shown = re.findall(r"^(teacher|student alone|distilled) +([\d.]+)", tested.out, re.MULTILINE)
    assert [name for name, _ in shown] == ["teacher", "student alone", "distilled"]
    assert re.search(r"gap closed|nothing to distil", tested.out)
    content = checkpoint.read(tiny.out / "d" / "model" / "train_epoch_1.pth")
    assert {key.split(".")[0] for key in content["state_dict"]} == set(
        tiny_pspnet(18).state_dict().keys() and {*(f"layer{i}" for i in range(5)), "ppm", "cls", "aux"}
    )


def check_results(folder, out):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [c["name"] for c in metrics["classes"]] == ["sky", "land", "road", "car"]
    assert metrics["images"] == 3 and 0 <= metrics["mIoU"] <= 1
    assert metrics["protocol"]["mode"] == "slide" and metrics["protocol"]["flip"] is True
    assert f"{100 * metrics['mIoU']:.2f}" in out and "with flip" in out
    for i in range(3):
        gray = Image.open(folder / "gray" / f"val{i}.png")
        color = Image.open(folder / "color" / f"val{i}.png")
        assert gray.mode == "L" and color.mode == "P"
        assert np.array_equal(np.asarray(gray), np.asarray(color))
        assert np.asarray(gray).max() < 4


def test_training_learns(tiny, script):
    options = "TRAIN.epochs 60 TRAIN.base_lr 0.1 TRAIN.head_lr_factor 1.0 TRAIN.dropout 0 TRAIN.save_freq 60"
    options += " TRAIN.evaluate True"
    assert script("train_18.py", "--config", tiny.path, *options.split()).status == 0
    history = lines(tiny.out / "model")
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["val_mIoU"] > 0.5
    best = max(line["val_mIoU"] for line in history)
    assert checkpoint.read(tiny.out / "model" / "best.pth")["best"] == best


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_run_equals_an_untouched_one(tiny, script, teacher, optimizer):
    """Weights, optimizer and metrics, bit for bit; the resumed run also has another number of workers."""

    def train(run, *options):
        folder = tiny.out / run
        result = script(
            *("train_50_18.py", "--config", tiny.path, *teacher, "TRAIN.epochs", "3", "TRAIN.optimizer", optimizer),
            *("TRAIN.save_path", folder, *options),
        )
        assert result.status == 0, result.err
        return folder

    whole, parts = train("whole"), train("parts", "TRAIN.keep", "3")
    (parts / "train_epoch_3.pth").unlink()
    (parts / "train_epoch_2.pth").unlink()  # as if killed in epoch 2, with later lines already written
    train("parts", "TRAIN.workers", "1")
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()
    first, second = (checkpoint.read(folder / "train_epoch_3.pth") for folder in (whole, parts))
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key
    states = [c["optimizer"]["state"] for c in (first, second)]
    for key, state in states[0].items():
        assert state.keys() == states[1][key].keys() >= {"sgd": {"momentum_buffer"}, "adamw": {"exp_avg_sq"}}[optimizer]
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())


def test_checkpoints_kept(tiny, script):
    options = "TRAIN.epochs 5 TRAIN.save_freq 2 TRAIN.evaluate False TRAIN.pictures 0".split()
    assert script("train_18.py", "--config", tiny.path, *options).status == 0
    names = {path.name for path in (tiny.out / "model").glob("*.pth")}
    assert names == {"train_epoch_4.pth", "train_epoch_5.pth"}  # the last one whatever save_freq


def test_accumulate_gives_the_same_loss(tiny, script):
    """Before the first update (BatchNorm aside, which sees the parts) a split batch has the whole one's terms."""
    losses = []
    for parts in ("1", "2"):
        options = f"TRAIN.accumulate {parts} TRAIN.save_path {tiny.out}/{parts} TRAIN.base_lr 1e-9".split()
        result = script("train_18.py", "--config", tiny.path, *options)
        assert result.status == 0, result.err
        losses.append(lines(tiny.out / parts)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.5) and losses[0] != losses[1]


@pytest.mark.xdist_group("processes")
def test_two_processes(tiny, script):
    """torchrun on the CPU: one writer, one line an epoch, nothing counted twice in testing."""
    result = python("train_18.py", "--config", tiny.path, "TRAIN.epochs", "2", processes=2)
    assert result.returncode == 0, result.stderr
    assert [line["epoch"] for line in lines(tiny.out / "model")] == [1, 2]
    assert len(list((tiny.out / "model").glob("events*"))) == 1
    options = ["--config", tiny.path, "TEST.model_path", f"{tiny.out}/model/train_epoch_2.pth"]
    one, two = tiny.out / "result1", tiny.out / "result2"
    assert script("test_18.py", *options, "TEST.save_folder", one).status == 0
    result = python("test_18.py", *options, "TEST.save_folder", two, processes=2)
    assert result.returncode == 0, result.stderr
    assert json.loads((one / "metrics.json").read_text()) == json.loads((two / "metrics.json").read_text())


def test_has_prediction_and_parts(tiny, script):
    path = tiny.out / "n.pth"
    torch.save({"state_dict": tiny_pspnet().state_dict()}, path)
    options = ["--config", tiny.path, "TEST.model_path", path]
    assert script("test_18.py", *options).status == 0
    whole = json.loads((tiny.out / "result" / "metrics.json").read_text())
    shared = ["TEST.save_folder", tiny.out / "shared", "TEST.index_step", "2"]
    for start in ("0", "2"):
        assert script("test_18.py", *options, *shared, "TEST.index_start", start).status == 0
    scored = ["TEST.save_folder", tiny.out / "shared", "TEST.has_prediction", "True", "TEST.model_path", "gone.pth"]
    assert script("test_18.py", "--config", tiny.path, *scored).status == 0
    parts = json.loads((tiny.out / "shared" / "metrics.json").read_text())
    assert parts["classes"] == whole["classes"] and parts["images"] == 3


def test_list_without_labels(tiny, script):
    (tiny.out / "images.txt").write_text("val0.jpg\nval1.jpg\n")
    path = tiny.out / "n.pth"
    torch.save({"state_dict": tiny_pspnet().state_dict()}, path)
    options = ["TEST.model_path", path, "TEST.split", "test", "TEST.test_list", tiny.out / "images.txt"]
    assert script("test_18.py", "--config", tiny.path, *options).status == 0
    assert len(list((tiny.out / "result" / "gray").iterdir())) == 2
    assert not (tiny.out / "result" / "metrics.json").exists()
