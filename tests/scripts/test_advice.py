"""Every error says a way out: following it must not end in the next error."""

import ast
import re
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, tiny_pspnet
from PIL import Image

from util import config

KEY = re.compile(r"\b(?:DATA|TRAIN|DISTILL|TEST)\.[a-z_]+(?:\.[a-z_]+)?")
SOURCES = [path for folder in ("util", "tool", "model") for path in sorted((ROOT / folder).rglob("*.py"))]


def texts(path):
    """The text of every string in a source file, f-strings put together."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_keys_that_messages_name_exist(path):
    known = {*config.defaults(), "DISTILL.weights"}
    assert not {key for text in texts(path) for key in KEY.findall(text)} - known


def test_keys_that_replace_retired_ones_exist():
    retired = yaml.safe_load(config.RETIRED.read_text())
    assert not {key for advice in retired.values() for key in KEY.findall(advice)} - {*config.defaults()}


@pytest.fixture
def walk(tiny, fails, script):
    """walk(script, overrides, words, remedy) sees the error with `words`, then that the remedy's overrides end it."""

    def call(name: str, wrong: list, words: str, remedy: list):
        line = fails(name, "--config", tiny.path, *wrong)
        assert words in line
        result = script(name, "--config", tiny.path, *wrong, *remedy)
        assert result.status == 0, result.err
        return line

    return call


def save(path, **content) -> str:
    path.parent.mkdir(exist_ok=True)
    torch.save(content or {"state_dict": tiny_pspnet().state_dict()}, path)
    return str(path)


def test_a_file_that_cannot_be_resumed_becomes_the_weight_of_another_run(tiny, walk):
    """In the same folder, the file would be found, and refused, again."""
    path = save(tiny.out / "model" / "train_epoch_1.pth")
    remedy = ["TRAIN.weight", path, "TRAIN.save_path", tiny.out / "other", "TRAIN.resume", "auto"]
    walk("train_18.py", [], "another TRAIN.save_path, and TRAIN.resume auto", remedy)
    walk("train_18.py", ["TRAIN.resume", path], "make it TRAIN.weight", [*remedy[:3], tiny.out / "third", *remedy[4:]])


def test_other_settings_start_anew_elsewhere(tiny, walk, script):
    assert script("train_18.py", "--config", tiny.path).status == 0
    path = tiny.out / "model" / "train_epoch_1.pth"
    remedy = ["TRAIN.save_path", tiny.out / "other", "TRAIN.resume", "auto"]
    walk("train_18.py", ["TRAIN.base_lr", "0.1"], "take them back", remedy[:2])
    remedy[1] = tiny.out / "third"
    walk("train_18.py", ["TRAIN.base_lr", "0.1", "TRAIN.resume", path], "TRAIN.resume auto", remedy)


def test_a_full_disk_goes_on_elsewhere(tiny, script, caplog):
    """checkpoint.save's advice; the disk itself is filled by tests/faults.py."""
    run = ["--config", tiny.path, "TRAIN.epochs", "2"]
    assert script("train_18.py", *run, "TRAIN.keep", "2").status == 0
    newest = tiny.out / "model" / "train_epoch_1.pth"
    options = ["TRAIN.save_path", tiny.out / "other", "TRAIN.resume", newest]
    with caplog.at_level("INFO"):
        for _ in range(2):  # the same command again goes on from its own checkpoints
            assert script("train_18.py", *run, *options).status == 0
    assert "holds a finished run" in caplog.text
    first, second = (torch.load(tiny.out / name / "train_epoch_2.pth") for name in ("model", "other"))
    assert all(torch.equal(a, second["state_dict"][key]) for key, a in first["state_dict"].items())


def test_a_spoilt_partial_epoch_is_removed(tiny, walk, fails, script):
    run = ["--config", tiny.path, "TRAIN.epochs", "2"]
    assert script("train_18.py", *run).status == 0
    folder = tiny.out / "model"
    (folder / "train_epoch_2.pth").unlink()
    content = torch.load(folder / "train_epoch_1.pth")
    content["partial"] = {"sums": torch.zeros(9), "matrix": torch.zeros(2, 2), "steps": 1, "lr": 0.1, "shares": {}}
    torch.save(content, folder / "interrupted.pth")
    assert "remove it to go on from the one before" in fails("train_18.py", *run)
    (folder / "interrupted.pth").unlink()
    assert script("train_18.py", *run).status == 0


@pytest.mark.parametrize(("key", "value"), [("DATA.classes", "3"), ("TRAIN.layers", "34")])
def test_a_new_head_is_proposed_where_it_helps(tiny, walk, fails, key, value):
    wrong = ["TRAIN.weight", save(tiny.out / "other.pth"), key, value]
    if key == "DATA.classes":
        (tiny.out / "names.txt").write_text("a\nb\nc\n")
        wrong += ["DATA.names_path", tiny.out / "names.txt", "DATA.label_map", "{0: 0, 1: 1, 2: 2, other: 255}"]
        walk("train_18.py", wrong, "TRAIN.new_head True", ["TRAIN.new_head", "True"])
    else:
        assert "TRAIN.new_head" not in fails("train_18.py", "--config", tiny.path, *wrong)


def test_images_and_batches_that_do_not_fit(tiny, walk, fails, script):
    line = walk("train_18.py", ["TRAIN.batch_size", "9"], "lower that", ["TRAIN.batch_size", "8"])
    assert "or list images more than once" in line
    (tiny.out / "list.txt").write_text("train0.jpg train0.png\n" * 2)
    options = ["DATA.train_list", tiny.out / "list.txt", "TRAIN.save_path", tiny.out / "twice"]
    walk("train_18.py", [*options, "TRAIN.batch_size", "1"], "BatchNorm needs two: raise it", ["TRAIN.batch_size", "2"])
    options = ["TRAIN.accumulate", "4", "TRAIN.save_path", tiny.out / "third"]
    walk("train_18.py", options, "lower TRAIN.accumulate", ["TRAIN.accumulate", "2"])


def test_a_teacher_without_an_auxiliary_head(tiny, walk):
    state = {key: value for key, value in tiny_pspnet().state_dict().items() if not key.startswith("aux.")}
    teacher = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", save(tiny.out / "t.pth", state_dict=state)]
    walk("train_50_18.py", teacher, "DISTILL.weights.aux_mse to 0", ["DISTILL.weights.aux_mse", "0"])


def test_a_network_of_another_normalisation(tiny, walk):
    content = {"state_dict": tiny_pspnet().state_dict(), "normalisation": {"mean": [9.0] * 3, "std": [7.0] * 3}}
    path = save(tiny.out / "t.pth", **content)
    walk(
        "test_18.py",
        ["TEST.model_path", path],
        "set them so",
        ["DATA.mean", "[9.0, 9.0, 9.0]", "DATA.std", "[7.0, 7.0, 7.0]"],
    )


def test_values_that_no_class_has(tiny, walk):
    """Renaming some values asks for the others, and the advice for those ends it, whatever value is void."""
    (tiny.out / "list.txt").write_text("")
    for i in range(4):
        Image.open(tiny.root / f"train{i}.png").point(lambda value: 77 if value == 3 else value).save(
            tiny.out / f"{i}.png"
        )
    (tiny.out / "list.txt").write_text("".join(f"train{i}.jpg\t{tiny.out}/{i}.png\n" for i in range(4)))
    wrong = ["DATA.train_list", tiny.out / "list.txt", "TRAIN.ignore_label", "200", "TRAIN.workers", "1"]
    renamed = ["DATA.label_map", "{77: 3}"]
    line = walk(
        "train_18.py", wrong, "DATA.label_map renames values", ["DATA.label_map", "{77: 3, 0: 0, 1: 1, 2: 2, 255: 200}"]
    )
    assert "holds the value 77" in line
    remedy = ["DATA.label_map", "{77: 3, 0: 0, 1: 1, 2: 2, other: 200}", "TRAIN.save_path", tiny.out / "second"]
    walk("train_18.py", [*wrong, *renamed, "TRAIN.save_path", tiny.out / "second"], "other: ", remedy)


def test_colours_in_a_label(tiny, walk):
    for i in range(4):
        Image.open(tiny.root / f"train{i}.png").convert("RGB").save(tiny.out / f"{i}.png")
    (tiny.out / "list.txt").write_text("".join(f"train{i}.jpg {tiny.out}/{i}.png\n" for i in range(4)))
    colors = {f"{v * 97 % 256} {(v * 97 + 53) % 256} {(v * 97 + 106) % 256}": v for v in range(4)}
    remedy = ["DATA.label_map", str(colors | {"other": 255})]
    walk("train_18.py", ["DATA.train_list", tiny.out / "list.txt"], "colours become classes by DATA.label_map", remedy)


def test_a_test_of_maps_without_labels(tiny, walk, script):
    save(tiny.out / "model" / "train_epoch_1.pth")
    wrong = ["TEST.has_prediction", "True"]
    walk("test_18.py", wrong, "test that network first, without TEST.has_prediction", ["TEST.has_prediction", "False"])
    walk("test_18.py", [*wrong, "TEST.split", "test"], "set TEST.split to val", ["TEST.split", "val"])
    walk("test_18.py", ["TEST.index_start", "9"], "lower it", ["TEST.index_start", "1"])


def test_two_images_that_no_path_tells_apart(tiny, fails, script):
    for name in ("a_b/c.jpg", "a/b_c.jpg"):
        (tiny.out / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny.root / "val0.jpg", tiny.out / name)
    save(tiny.out / "model" / "train_epoch_1.pth")
    (tiny.out / "list.txt").write_text("a_b/c.jpg\na/b_c.jpg\n")
    run = [
        "--config",
        tiny.path,
        "TEST.test_list",
        tiny.out / "list.txt",
        "TEST.split",
        "test",
        "DATA.data_root",
        tiny.out,
    ]
    # The stems differ; once the first needs its folder's name, they meet.
    assert script("test_18.py", *run).status == 0
    (tiny.out / "list.txt").write_text("a_b/c.jpg\na/b_c.jpg\nother/c.jpg\n")
    (tiny.out / "other").mkdir()
    shutil.copy(tiny.root / "val0.jpg", tiny.out / "other" / "c.jpg")
    line = fails("test_18.py", *run)
    assert "a_b/c.jpg and " in line and "a/b_c.jpg would have outputs of the same name; rename one" in line
    (tiny.out / "list.txt").write_text("a_b/c.jpg\nother/c.jpg\n")
    assert script("test_18.py", *run).status == 0


def test_an_unlabelled_image_may_have_spaces_in_its_path(tiny, fails, script):
    save(tiny.out / "model" / "train_epoch_1.pth")
    shutil.copy(tiny.root / "val0.jpg", tiny.out / "my own image.jpg")
    (tiny.out / "list.txt").write_text("my own image.jpg\n")
    run = ["--config", tiny.path, "TEST.test_list", tiny.out / "list.txt", "TEST.split", "test"]
    assert script("test_18.py", *run, "DATA.data_root", tiny.out).status == 0
    assert (tiny.out / "result" / "gray" / "my own image.png").is_file()
    (tiny.out / "list.txt").write_text("val0.jpg val0.png\n")
    assert "each line of this list is one image" in fails("test_18.py", *run)
