"""YAML and overrides: what is read, and what each mistake says."""

from pathlib import Path

import pytest
from conftest import ROOT

from util import config
from util.errors import UserError

SHIPPED = sorted(ROOT.glob("config/*/*_pspnet*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    cfg = config.load(path)
    dataset, run = path.stem.split("_", 1)
    assert cfg.train.layers == int(run[-2:])
    assert cfg.train.save_path == f"exp/{dataset}/{run}/model"
    assert cfg.test.model_path == f"{cfg.train.save_path}/train_epoch_{cfg.train.epochs}.pth"
    assert (cfg.distill is not None) == (run == "pspnet50_18")
    if cfg.distill:
        teacher, student = (config.load(path.with_name(f"{dataset}_{name}.yaml")) for name in ("pspnet50", "pspnet18"))
        assert cfg.distill.teacher_path == teacher.test.model_path
        assert cfg.test.compare.teacher == f"{teacher.test.save_folder}/metrics.json"
        may_differ = {"save_path", "epochs", "batch_size", "unlabelled_per_batch"}
        assert cfg.train.model_dump(exclude=may_differ) == student.train.model_dump(exclude=may_differ)
        assert cfg.train.images_per_step == student.train.images_per_step  # and as many steps:
        assert cfg.train.epochs / cfg.train.batch_size == student.train.epochs / student.train.batch_size


def test_all_are_found():
    """The scripts' default configs are among those that test_shipped_configs_load reads."""
    assert {f"voc2012_pspnet{depth}" for depth in ("18", "50", "50_18")} <= {path.stem for path in SHIPPED}


def test_overrides(tiny):
    cfg = tiny.load(*"TRAIN.epochs 3 TRAIN.base_lr 1e-3 TRAIN.epochs 5".split(), "TEST.scales", "[0.75, 1.0]")
    assert cfg.train.epochs == 5
    assert cfg.train.base_lr == 0.001
    assert cfg.test.scales == [0.75, 1.0]


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", "0.001", ".1e-2"])
def test_every_way_to_write_a_number(tiny, text):
    assert tiny.load("TRAIN.base_lr", text).train.base_lr == 0.001


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["TRAIN.epoch", "3"], ["TRAIN.epoch", "TRAIN.epochs"]),
        (["TRAIN.temprature", "3"], ["TRAIN.temprature", "DISTILL.temperature"]),
        (["TRAIN.test_h", "3"], ["TRAIN.test_h", "TEST.test_h"]),
        (["TRIAN.epochs", "3"], ["TRIAN", "TRAIN"]),
        (["TRAIN.epochs", "many"], ["TRAIN.epochs", "many"]),
        (["TRAIN.epochs", "0"], ["TRAIN.epochs", "0"]),
        (["TRAIN.layers", "20"], ["TRAIN.layers", "18", "152", "20"]),
        (["TRAIN.sync_bn", "1"], ["TRAIN.sync_bn"]),
        (["TRAIN.scale_min", "3"], ["TRAIN", "scale_min is above scale_max"]),
        (["TRAIN.accumulate", "3"], ["accumulate must divide batch_size"]),
        (["TRAIN.ignore_label", "3"], ["TRAIN.ignore_label 3", "DATA.classes"]),
        (["epochs", "3"], ["epochs", "TRAIN.epochs 2"]),
        (["TRAIN.epochs"], ["pairs", "TRAIN.epochs"]),
        (["TRAIN.epochs", "[1"], ["TRAIN.epochs", "YAML"]),
        (["TRAIN.save_path", "!!python/object:os.system x"], ["TRAIN.save_path", "YAML"]),
        (["TRAIN.train_gpu", "[0]", "TRAIN.arch", "psp"], ["CUDA_VISIBLE_DEVICES", "torchrun", "TRAIN.arch"]),
        (["Distributed.dist_url", "tcp", "Distributed.rank", "0"], ["Distributed.dist_url", "Distributed.rank"]),
        (["TEST.names_path", "x"], ["DATA.names_path"]),
        (["DISTILL.weights.kd", "1"], ["DISTILL.weights.kd", "unknown key DISTILL.weights.kd"]),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(tiny, overrides, words):
    with pytest.raises(UserError) as error:
        tiny.load(*overrides)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_base(tmp_path, tiny):
    child = tmp_path / "sub" / "child.yaml"
    child.parent.mkdir()
    child.write_text("base: ../tiny.yaml\nTRAIN:\n  epochs: 9\n")
    assert config.load(child).train.epochs == 9
    assert config.load(child).train.batch_size == tiny.load().train.batch_size
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        config.load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TRAIN: [", ["line 1"]),
        ("just words", ["sections"]),
        ("TRAIN:\n  epochs: 1\n  epochs: 2\n", ["epochs is given twice", "line 3"]),
        ("", ["sections"]),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        config.load(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_mistake_is_blamed_on_the_place_where_it_stands(tiny):
    with pytest.raises(UserError, match=r"^command line: unknown key TRAIN.epoch "):
        tiny.load("TRAIN.epoch", "3")
    Path(tiny.path).write_text(Path(tiny.path).read_text().replace("epochs: 1", "epoch: 1"))
    with pytest.raises(UserError, match=r"tiny.yaml: .*unknown key TRAIN.epoch .*"):
        tiny.load("TRAIN.base_lr", "0.1")


def test_windows_are_as_large_as_crops_unless_told_otherwise(tiny):
    path = Path(tiny.path)
    path.write_text(path.read_text().replace("  test_h: 33\n", ""))
    test = tiny.load("TRAIN.train_h", "41", "TRAIN.train_w", "49").test
    assert (test.test_h, test.test_w) == (41, 33)
    assert tiny.load("TEST.test_h", "57").test.test_h == 57


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere.yaml does not exist"):
        config.load("nowhere.yaml")


def test_every_key_is_explained_in_one_place():
    """In voc2012's two files, so that a user can see and change it; the others state what differs."""
    explained = {"voc2012_pspnet18": ("data", "train", "test"), "voc2012_pspnet50_18": ("distill",)}
    for path in SHIPPED:
        text = path.read_text()
        for section in explained.get(path.stem, ()):
            for key in type(getattr(config.load(path), section)).model_fields:
                assert f"\n  {key}:" in text or key == "compare", (path, key)
        assert len(text.splitlines()) < 45 or path.stem in explained, path


def test_paths_follow_from_save_path_and_epochs(tiny, tmp_path):
    empty = ["TEST.model_path", "", "TEST.save_folder", ""]
    cfg = tiny.load("TRAIN.epochs", "7", "TRAIN.save_path", "exp/a/model", *empty)
    assert (cfg.test.model_path, cfg.test.save_folder) == ("exp/a/model/train_epoch_7.pth", "exp/a/result")
    other = tiny.load("TRAIN.save_path", "exp/b", *empty)  # two runs in one folder do not share their results
    assert other.test.save_folder == "exp/b/result"
    given = tiny.load("TEST.model_path", "a.pth", "TEST.save_folder", "b")
    assert (given.test.model_path, given.test.save_folder) == ("a.pth", "b")


def test_the_teacher_is_the_last_checkpoint_of_its_config(tiny, tmp_path):
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text("base: tiny.yaml\nTRAIN: {epochs: 9, save_path: t/model}\nTEST: {model_path: }\n")
    cfg = tiny.load("DISTILL.teacher_config", str(teacher), "TRAIN.epochs", "2")
    assert cfg.distill.teacher_path == "t/model/train_epoch_9.pth"
    given = ["DISTILL.teacher_path", "other.pth", "DISTILL.teacher_layers", "34"]
    cfg = tiny.load("DISTILL.teacher_config", str(teacher), *given)
    assert (cfg.distill.teacher_path, cfg.distill.teacher_layers) == ("other.pth", 34)
    teacher.write_text("base: tiny.yaml\nTRAIN: {layers: 101, backbone: timm/resnet26}\n")
    cfg = tiny.load("DISTILL.teacher_config", str(teacher))
    assert (cfg.distill.teacher_layers, cfg.distill.teacher_architecture) == (101, "timm/resnet26")
    with pytest.raises(UserError, match=r"DISTILL: teacher_path is empty|DISTILL.teacher_path is empty"):
        tiny.load("DISTILL.temperature", "3.0")
    teacher.write_text(f"base: tiny.yaml\nDISTILL: {{teacher_config: {teacher}}}\n")
    assert config.load(teacher).distill.teacher_path == f"{tmp_path}/model/train_epoch_1.pth"  # no endless chain


def test_check_is_no_key(tmp_path, tiny):
    """A file that says check: True must not turn training into a dry run unnoticed."""
    (tmp_path / "child.yaml").write_text("base: tiny.yaml\ncheck: True\n")
    with pytest.raises(UserError, match="--check on the command line"):
        config.load(tmp_path / "child.yaml")
