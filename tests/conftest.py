"""A tiny dataset, its config, and ways to run the project's scripts on it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from narrow.sitecustomize import narrow
from PIL import Image

from model.backbone import RESNETS
from util import config

ROOT = Path(__file__).resolve().parent.parent
FULL = dict(RESNETS)
GPU, VISIBLE = torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")
PATHS = [path for path in [os.environ.get("PYTHONPATH")] if path]
torch.set_num_threads(1)  # the networks' inputs are tiny: threads would spend their time waiting for each other
CLASSES, VOID = 4, 255

CONFIG = """
DATA:
  data_root: {root}
  train_list: {root}/train.txt
  val_list: {root}/val.txt
  classes: 4
  names_path: {root}/names.txt
  colors_path: {root}/colors.txt
TRAIN:
  layers: 18
  pretrained: none
  train_h: 33
  train_w: 33
  workers: 0
  batch_size: 4
  batch_size_val: 4
  epochs: 1
  manual_seed: 0
  precision: fp32
  print_freq: 1
  save_path: {out}/model
  evaluate: False
  pictures: 0
TEST:
  test_list: {root}/val.txt
  base_size: 56
  test_h: 33
  test_w: 33
  precision: fp32
  model_path: {out}/model/train_epoch_1.pth
  save_folder: {out}/result
"""


@pytest.fixture(scope="session", autouse=True)
def small_world():
    """Networks of an eighth of the width and no GPU, in this process and in those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for depth, spec in FULL.items():
            patch.setitem(RESNETS, depth, narrow(spec))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "narrow"), *PATHS]))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True)
def marked(request, monkeypatch, small_world):
    """full_width: the networks' real channels. gpu: the GPU, or skipped."""
    if request.node.get_closest_marker("full_width"):
        for depth, spec in FULL.items():
            monkeypatch.setitem(RESNETS, depth, spec)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
    if request.node.get_closest_marker("gpu"):
        if not GPU:
            pytest.skip("needs a GPU")
        if VISIBLE is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coloured bands: an image and the label that it shows, with a border of void."""
    bounds = np.sort(rng.integers(1, width, CLASSES - 1))
    label = np.digitize(np.arange(width), bounds)[None].repeat(height, 0).astype(np.uint8)
    image = np.stack([label * 60, 255 - label * 50, np.full_like(label, 90)], 2)
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    label[:, bounds[0] - 1] = VOID
    return image, label


def save_palette(label: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(label, "P")
    picture.putpalette([(i * 97 + channel * 53) % 256 for i in range(256) for channel in range(3)])
    picture.save(path)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A folder of 8 train and 3 val scenes of mixed sizes, palette labels, lists, names and colours."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        lines = []
        for i in range(count):
            image, label = scene(rng, *[(40, 56), (50, 30), (33, 45)][i % 3])
            Image.fromarray(image).save(root / f"{split}{i}.jpg", quality=95)
            save_palette(label, root / f"{split}{i}.png")
            lines.append(f"{split}{i}.jpg {split}{i}.png\n")
        (root / f"{split}.txt").write_text("".join(lines))
    (root / "names.txt").write_text("sky\nland\nroad\ncar\n")
    (root / "colors.txt").write_text("0 0 0\n255 0 0\n0 255 0\n0 0 255\n")
    return root


@pytest.fixture
def tiny(dataset, tmp_path) -> SimpleNamespace:
    """A config file for `dataset` that writes under tmp_path; `load(*overrides)` reads it."""
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(root=dataset, out=tmp_path))
    return SimpleNamespace(
        path=str(path), root=dataset, out=tmp_path, load=lambda *overrides: config.load(path, list(overrides))
    )


EPOCHS = "TRAIN.epochs 3 TRAIN.batch_size 2 TRAIN.evaluate True".split()


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> list[str]:
    """The overrides that name a teacher."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save({"state_dict": tiny_pspnet().state_dict()}, path)
    return ["DISTILL.teacher_layers", "18", "DISTILL.check_images", "0", "DISTILL.teacher_path", str(path)]


@pytest.fixture
def command(tiny, teacher):
    """command(folder, *overrides) -> the arguments of a distillation of 12 steps that writes to `folder`."""
    return lambda folder, *options: ["--config", tiny.path, *EPOCHS, *teacher, "TRAIN.save_path", str(folder), *options]


@pytest.fixture(scope="session")
def whole(dataset, teacher, tmp_path_factory) -> Path:
    """The folder of such a distillation that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    (out / "tiny.yaml").write_text(CONFIG.format(root=dataset, out=out))
    result = python("train_50_18.py", "--config", out / "tiny.yaml", *EPOCHS, *teacher)
    assert result.returncode == 0, result.stderr
    return out / "model"


@pytest.fixture
def script(monkeypatch, capfd):
    """script(name, *arguments) runs a script of the top level in this process -> (exit status, stdout, stderr)."""

    def call(name: str, *arguments: str):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        return SimpleNamespace(status=status, **capfd.readouterr()._asdict())

    return call


@pytest.fixture
def fails(script):
    """fails(name, *arguments) checks that a script ends with one `error:` line and status 2 -> that line."""

    def call(name: str, *arguments: str) -> str:
        result = script(name, *arguments)
        lines = [line for line in result.err.splitlines() if line.strip() and "\r" not in line]
        assert result.status == 2, result
        assert len(lines) == 1 and lines[0].startswith("error: "), result.err
        return lines[0]

    return call


def python(*command: str, processes: int = 1, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a command of the project in a process of its own, under torchrun when there are several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([*launcher, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300)


def tiny_pspnet(layers: int = 18, stem: str = "plain", seed: int = 0):
    """A PSPNet of 4 classes, in eval mode, whose BatchNorms do something."""
    from model.pspnet import PSPNet

    torch.manual_seed(seed)
    net = PSPNet(layers, CLASSES, stem).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net
