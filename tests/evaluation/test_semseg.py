"""The same labels and scores as semseg's test.py on the same weights and images (tests/data/semseg/README.md)."""

import json

import numpy as np
import pytest
import rebuild
import torch
from conftest import CONFIG, ROOT
from PIL import Image

from model.pspnet import PSPNet
from util import checkpoint, config, network

pytestmark = pytest.mark.full_width
DATA = ROOT / "tests" / "data" / "semseg"


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((DATA / f"keys{layers}.json").read_text()).items()}


def reference_state(layers: int, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """The weights that the reference ran with, under its names as it saves them."""
    state = rebuild.weights(shapes(layers), layers)
    state["cls.4.bias"] = torch.tensor(json.loads((DATA / "scores.json").read_text())[f"bias{layers}"])
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("semseg")
    for i in range(len(rebuild.SIZES)):
        Image.fromarray(rebuild.image(i)).save(root / f"{i}.png")
        Image.fromarray(rebuild.label(i)).save(root / f"label{i}.png")
    (root / "val.txt").write_text("".join(f"{i}.png label{i}.png\n" for i in range(len(rebuild.SIZES))))
    (root / "names.txt").write_text("a\nb\nc\nd\ne\n")
    (root / "colors.txt").write_text("0 0 0\n" * 5)
    return root


@pytest.mark.parametrize("layers", [18, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scales", ["single", "multi"])
def test_labels_and_scores(images, tmp_path, script, layers, scales):
    torch.save({"epoch": 50, "state_dict": reference_state(layers)}, tmp_path / "theirs.pth")
    (tmp_path / "c.yaml").write_text(CONFIG.format(root=images, out=tmp_path))
    options = f"DATA.classes 5 TRAIN.layers {layers} TEST.test_h {rebuild.CROP[0]} TEST.test_w {rebuild.CROP[1]}"
    options += f" TEST.base_size {rebuild.BASE_SIZE} TEST.model_path {tmp_path}/theirs.pth"
    result = script(
        f"test_{layers}.py", "--config", tmp_path / "c.yaml", *options.split(), "TEST.scales", rebuild.SCALES[scales]
    )
    assert result.status == 0, result.err
    same = total = 0
    for i in range(len(rebuild.SIZES)):
        ours = np.asarray(Image.open(tmp_path / "result" / "gray" / f"{i}.png"))
        theirs = np.asarray(Image.open(DATA / f"{layers}_{scales}_{i}.png"))
        same += (ours == theirs).sum()
        total += theirs.size
    assert same / total >= 0.9999
    metrics = json.loads((tmp_path / "result" / "metrics.json").read_text())
    for name, value in json.loads((DATA / "scores.json").read_text())[f"{layers}-{scales}"].items():
        assert metrics[name] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(("layers", "stem"), [(18, "plain"), (50, "deep")])
def test_our_names_and_shapes_are_theirs(layers, stem):
    ours = {key: tuple(value.shape) for key, value in PSPNet(layers, rebuild.CLASSES, stem).state_dict().items()}
    assert ours == shapes(layers)


def test_semseg_file_as_weight_and_as_teacher(tmp_path, tiny, script):
    """A deep-stem file starts a training whose config says plain, and teaches a plain-stem student."""
    path = tmp_path / "semseg.pth"
    torch.save({"epoch": 50, "state_dict": reference_state(50)}, path)
    options = ["--config", tiny.path, *five_classes(tmp_path)]
    assert script("train_50_18.py", *options, "DISTILL.teacher_path", path).status == 0
    resumed = [
        "TRAIN.layers",
        "50",
        "TRAIN.weight",
        path,
        "TRAIN.save_path",
        tmp_path / "fine",
        "TRAIN.base_lr",
        "1e-9",
    ]
    assert script("train_50.py", *options, *resumed).status == 0
    state = checkpoint.network_state(tmp_path / "fine" / "train_epoch_1.pth", "student")
    torch.testing.assert_close(state["layer0.6.weight"], reference_state(50, "")["layer0.6.weight"])


def five_classes(folder):
    (folder / "names.txt").write_text("a\nb\nc\nd\ne\n")
    (folder / "colors.txt").write_text("0 0 0\n" * 5)
    return f"DATA.classes 5 DATA.names_path {folder}/names.txt DATA.colors_path {folder}/colors.txt".split()


def kdnet(with_teacher_aux: bool) -> dict[str, torch.Tensor]:
    """A file of the older distillation projects: student (its aux named aux_s) and teacher in one state dict."""
    student = {f"module.student_net.{k.replace('aux.', 'aux_s.')}": v for k, v in reference_state(18, "").items()}
    teacher = {f"module.teacher_loader.{k}": v for k, v in reference_state(50, "").items()}
    if not with_teacher_aux:
        teacher = {key: value for key, value in teacher.items() if ".aux." not in key}
    return student | teacher


def test_file_with_student_and_teacher(tmp_path, tiny, script, fails):
    path = tmp_path / "kdnet.pth"
    torch.save({"epoch": 28, "state_dict": kdnet(with_teacher_aux=False)}, path)
    student, teacher = (checkpoint.network_state(path, part) for part in ("student", "teacher"))
    assert {k: tuple(v.shape) for k, v in student.items()} == shapes(18)
    without_aux = {k: v for k, v in shapes(50).items() if not k.startswith("aux.")}
    assert {k: tuple(v.shape) for k, v in teacher.items()} == without_aux

    common = ["--config", tiny.path, *five_classes(tmp_path)]
    assert script("test_18.py", *common, "TEST.model_path", path).status == 0
    options = [*common, "TRAIN.weight", path, "DISTILL.teacher_path", path]
    line = fails("train_50_18.py", *options)
    assert "no auxiliary head" in line and "DISTILL.weights.aux_mse" in line
    assert script("train_50_18.py", *options, "DISTILL.weights.aux_mse", "0").status == 0


def test_float16_weights_become_float32(tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in reference_state(18).items()}
    torch.save(half, tmp_path / "half.pth")  # a bare state dict, too
    state = network.load(str(tmp_path / "half.pth"), 18, 5).state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert torch.equal(state["cls.4.bias"], half["module.cls.4.bias"].float())


OLDER = """
DATA:
  data_root: d
  train_list: t
  val_list: v
  classes: 21
TRAIN:
  arch: psp
  layers: 50
  sync_bn: True
  train_h: 473
  train_w: 473
  scale_min: 0.5
  scale_max: 2.0
  rotate_min: -10
  rotate_max: 10
  zoom_factor: 8
  ignore_label: 255
  aux_s_weight: 0.4
  aux_weight: 0.4
  train_gpu: [0]
  workers: 2
  batch_size: 4
  batch_size_val: 2
  base_lr: 0.01
  epochs: 50
  start_epoch: 0
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  manual_seed: 1
  print_freq: 50
  save_freq: 1
  save_path: exp/model
  weight:
  resume:
  evaluate: False
Distributed:
  dist_url: tcp
  dist_backend: 'nccl'
  multiprocessing_distributed: True
  world_size: 1
  rank: 0
TEST:
  test_list: v
  split: val
  base_size: 512
  test_h: 473
  test_w: 473
  scales: [1.0]
  has_prediction: False
  index_start: 0
  index_step: 0
  test_gpu: [0]
  model_path: m
  save_folder: s
  colors_path: c
  names_path: n
"""


def test_config_of_the_older_projects_says_every_change_at_once(tmp_path):
    (tmp_path / "old.yaml").write_text(OLDER)
    with pytest.raises(config.UserError) as error:
        config.load(tmp_path / "old.yaml")
    text = str(error.value)
    retired = "arch train_gpu start_epoch aux_s_weight dist_url dist_backend multiprocessing_distributed world_size"
    for key in [*retired.split(), "rank", "test_gpu", "TEST.names_path", "TEST.colors_path"]:
        assert f"{key}:" in text, key
    assert "unknown" not in text

    gone = ("arch", "train_gpu", "start_epoch", "aux_s_weight", "Distributed", "test_gpu", "colors_path", "names_path")
    gone += ("dist_", "multiprocessing", "world_size", "rank")
    kept = [line for line in OLDER.splitlines() if not line.strip().startswith(gone)]
    mended = "\n".join(kept).replace("  classes: 21", "  classes: 21\n  names_path: n\n  colors_path: c")
    (tmp_path / "new.yaml").write_text(mended)
    assert config.load(tmp_path / "new.yaml").train.resume is None
