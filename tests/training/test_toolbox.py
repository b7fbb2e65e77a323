"""The toolbox through train_50_18.py: every recipe, other pairs of networks, hints, schedules, unlabelled images."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, python, tiny_pspnet

from model.pspnet import PSPNet
from util import checkpoint, config
from util.train.hints import LOSSES, with_hints

RECIPES = sorted((ROOT / "config" / "camvid" / "distill").glob("*.yaml"))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """teachers(depth, stem) -> the path of a teacher of 4 classes."""
    folder, made = tmp_path_factory.mktemp("teachers"), {}

    def teacher(layers: int, stem: str = "plain") -> str:
        if (layers, stem) not in made:
            made[layers, stem] = folder / f"{layers}{stem}.pth"
            torch.save({"state_dict": tiny_pspnet(layers, stem).state_dict()}, made[layers, stem])
        return str(made[layers, stem])

    return teacher


@pytest.fixture
def distil(tiny, teachers, script):
    """distil(DISTILL keys as YAML text, *overrides) writes a config, trains for 2 steps -> result, its metrics line."""

    def train(text: str, *overrides: str, layers: int = 18, stem: str = "plain", folder: str = "model"):
        path = tiny.out / "distil.yaml"
        path.write_text(
            f"base: tiny.yaml\nDISTILL:\n  teacher_layers: {layers}\n  teacher_path: {teachers(layers, stem)}\n{text}"
        )
        quick = "TRAIN.pictures 0 TRAIN.evaluate False DISTILL.check_images 0".split()
        result = script("train_50_18.py", "--config", path, *quick, "TRAIN.save_path", tiny.out / folder, *overrides)
        return result, lines(tiny.out / folder) if result.status == 0 else []

    return train


def test_the_recipe_book_has_every_loss():
    named = {hint.loss for path in RECIPES for hint in config.load(path).distill.hints}
    assert named | {"kl", "mse"} == set(LOSSES)
    saved = {config.load(path).train.save_path for path in RECIPES}
    assert saved == {f"exp/camvid/distill/{path.stem}/model" for path in RECIPES}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> list[str]:
    """A few scenes of shapes and a ResNet-50 teacher for their 8 classes -> the overrides that name them."""
    root = tmp_path_factory.mktemp("shapes")
    made = python("dataset/shapes/prepare.py", "--train", 8, "--val", 2, "--out", root / "data")
    assert made.returncode == 0, made.stderr
    torch.save({"state_dict": PSPNet(50, 8).state_dict()}, root / "teacher.pth")
    data = root / "data"
    return [
        *("DATA.data_root", data, "DATA.train_list", data / "list/train.txt", "DATA.val_list", data / "list/val.txt"),
        *("DISTILL.teacher_path", root / "teacher.pth", "DISTILL.check_images", "0"),
        *"TRAIN.epochs 1 TRAIN.train_h 33 TRAIN.train_w 33 TRAIN.workers 0 TRAIN.precision fp32".split(),
        *"TRAIN.pictures 0 TRAIN.evaluate False".split(),
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_the_shapes_student_from_yaml_alone(recipe, shapes, script, tmp_path):
    """With a ResNet-50 teacher, so that adapters appear where layer4's 2048 and 512 channels meet."""
    own = yaml.safe_load(recipe.read_text())["DISTILL"]
    path = tmp_path / recipe.name
    path.write_text(yaml.safe_dump({"base": str(ROOT / "config/shapes/shapes_pspnet50_18.yaml"), "DISTILL": own}))
    result = script("train_50_18.py", "--config", path, *shapes, "TRAIN.save_path", tmp_path / "model")
    assert result.status == 0, result.err
    (line,) = lines(tmp_path / "model")
    names = {f"{hint['loss']}_{hint['layer']}" for hint in own.get("hints", [])}
    assert names <= line.keys() and all(math.isfinite(line[name]) and line[name] > 0 for name in names)
    assert sum(line[key] for key in line if key.startswith("share_")) == pytest.approx(1)
    state = checkpoint.read(tmp_path / "model" / "train_epoch_1.pth")
    assert state["state_dict"].keys() == PSPNet(18, 8).state_dict().keys()  # no adapter in what testing loads


@pytest.mark.parametrize(("layers", "stem", "student"), [(101, "plain", "34"), (18, "deep", "18")])
def test_other_pairs(layers, stem, student, distil):
    hints = (
        "  hints: [{layer: layer1, loss: fitnet}, {layer: layer4, loss: cwd, weight: 5}, {layer: feature, loss: at}]\n"
    )
    result, history = distil(hints, "TRAIN.layers", student, layers=layers, stem=stem)
    assert result.status == 0, result.err
    assert history[0].keys() >= {"fitnet_layer1", "cwd_layer4", "at_feature", "share_fitnet_layer1"}


def test_a_hint_without_an_adapter_has_its_share(distil):
    """Shares are taken at layer2 then: nothing of `at` on it reaches layer3."""
    result, history = distil("  hints: [{layer: layer2, loss: at, weight: 100}]\n")
    assert result.status == 0 and history[0]["share_at_layer2"] > 0.01, history


def test_layers_of_different_grids_and_a_teacher_of_another_precision(distil):
    hints = (
        "  precision: bf16\n"
        "  hints:\n"
        "    - {layer: layer1, teacher_layer: layer3, loss: fitnet}\n"  # stride 4 to stride 8
        "    - {layer: layer2, teacher_layer: layer1, loss: mse}\n"
        "    - {layer: aux, teacher_layer: logits, loss: kl, standardise: True, temperature: 3}\n"
        "    - {layer: aux_feature, loss: pairwise}\n"
    )
    result, history = distil(hints, "TRAIN.train_h", "35", "TRAIN.zoom_factor", "1")  # no 8n + 1
    assert result.status == 0, result.err
    assert history[0].keys() >= {"fitnet_layer1", "mse_layer2", "kl_aux", "pairwise_aux_feature"}


def test_adapters_learn_and_are_resumed(distil, tiny):
    """Stopped after an epoch and gone on with: the same adapters, weights and metrics as in one go."""
    text = "  hints: [{layer: feature, loss: mgd, weight: 1}, {layer: layer4, loss: attnfd}]\n"
    whole, _ = distil(text, "TRAIN.epochs", "2", layers=50, folder="whole")
    assert whole.status == 0, whole.err
    distil(text, "TRAIN.epochs", "2", "TRAIN.keep", "2", layers=50, folder="parts")
    (tiny.out / "parts" / "train_epoch_2.pth").unlink()
    first = checkpoint.read(tiny.out / "parts" / "train_epoch_1.pth")["adapters"]
    distil(text, "TRAIN.epochs", "2", layers=50, folder="parts")
    a, b = (checkpoint.read(tiny.out / name / "train_epoch_2.pth") for name in ("whole", "parts"))
    weights = [key for key in a["adapters"] if key.endswith("weight") and "1.weight" not in key]
    assert weights and all(not torch.equal(a["adapters"][key], first[key]) for key in weights)
    for part in ("state_dict", "adapters"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert lines(tiny.out / "whole") == lines(tiny.out / "parts")


def test_hints_without_anything_to_learn_are_resumed(distil, tiny):
    """cwd on logits has no adapter: there is nothing of it in the checkpoint, and nothing to miss there."""
    text = "  hints: [{layer: logits, loss: cwd}]\n"
    assert distil(text)[0].status == 0
    result, history = distil(text)  # finished: it has nothing left to do
    assert result.status == 0, result.err
    assert len(history) == 1


def test_losses_are_computed_in_float32_whatever_the_networks_precision(distil):
    """The same first step in bfloat16: its terms are close to float32's, also where a loss is made of products."""
    text = "  check_images: 0\n  hints: [{layer: feature, loss: cirkd}, {layer: feature, loss: pairwise}]\n"
    (single,) = distil(text, "TRAIN.base_lr", "1e-30", folder="a")[1]
    (half,) = distil(text, "TRAIN.base_lr", "1e-30", "TRAIN.precision", "bf16", folder="b")[1]
    for name in ("kl", "cirkd_feature", "pairwise_feature"):
        assert half[name] == pytest.approx(single[name], rel=0.1) and half[name] != single[name]


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        ("[{layer: layer4, loss: fitnett}]", ["fitnett", "did you mean fitnet"]),
        ("[{layer: layer5, loss: fitnet}]", ["DISTILL.hints.0.layer", "layer4"]),
        ("[{layer: layer4, loss: kl}]", ["kl_layer4", "logits and aux"]),
        ("[{layer: layer4, loss: at, standardise: True}]", ["standardise", "logits and aux"]),
        ("[{layer: logits, loss: cwd, temprature: 4}]", ["temprature", "did you mean temperature"]),
        ("[{layer: logits, loss: cwd, temperature: 0}]", ["cwd_logits: temperature", "greater than 0", "not 0"]),
        ("[{layer: feature, loss: pairwise, patch: 2.5}]", ["pairwise_feature: patch", "2.5"]),
        ("[{layer: logits, loss: dist}, {layer: logits, loss: dist}]", ["dist_logits", "twice"]),
        ("[{layer: logits}]", ["DISTILL.hints.0.loss is missing"]),
    ],
)
def test_mistakes_in_hints(hints, words, distil):
    result, _ = distil(f"  hints: {hints}\n")
    assert result.status == 2
    for word in words:
        assert word in result.err


def test_published_weights_where_a_hint_has_none(tiny):
    hints = "[{layer: logits, loss: cwd}, {layer: feature, loss: cwd}, {layer: layer4, loss: fitnet, weight: 2}]"
    cfg = tiny.load("DISTILL.teacher_path", "t.pth", "DISTILL.hints", hints)
    _, losses = with_hints(cfg.distill.hints, tiny_pspnet(18), tiny_pspnet(18))
    assert losses.weights == {"cwd_logits": 3.0, "cwd_feature": 50.0, "fitnet_layer4": 2.0}
