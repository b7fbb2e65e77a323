"""No output replaces an input or another output, and images of one name get different ones."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_pspnet

from util.errors import UserError
from util.evaluate.outputs import check_outputs, output_names


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["a/1.jpg", "b/2.png"], ["1", "2"]),
        (["left/0.png", "right/0.png"], ["left_0", "right_0"]),
        (["a.jpg", "a.png"], ["a_jpg", "a_png"]),
        (["x/s1/0.png", "y/s1/0.png", "x/s2/0.png"], ["x_s1_0", "y_s1_0", "x_s2_0"]),
        (["a/1.jpg", "a/1.jpg"], ["1", "1"]),
        ([], []),
    ],
)
def test_names_are_the_shortest_that_tell_images_apart(images, names):
    assert output_names([Path(image) for image in images]) == names


def test_links_and_dots_are_followed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("x")
    (tmp_path / "out").symlink_to("in")
    for written in (tmp_path / "out" / "a.png", tmp_path / "in" / ".." / "in" / "a.png"):
        with pytest.raises(UserError, match="a.png would be written over"):
            check_outputs([written], [tmp_path / "in" / "a.png"])
    with pytest.raises(UserError, match="written twice"):
        check_outputs([tmp_path / "out" / "b.png", tmp_path / "in" / "b.png"], [])
    check_outputs([tmp_path / "in" / "b.png"], [tmp_path / "in" / "a.png", None])


@pytest.fixture
def model(tiny) -> Path:
    (tiny.out / "model").mkdir()
    torch.save({"state_dict": tiny_pspnet().state_dict()}, tiny.out / "model" / "train_epoch_1.pth")
    return tiny.out / "model" / "train_epoch_1.pth"


def test_a_test_does_not_write_over_its_images(tiny, model, fails):
    data = tiny.out / "data"
    (data / "gray").mkdir(parents=True)
    shutil.copy(tiny.root / "val0.jpg", data / "gray" / "val0.png")
    (tiny.out / "list.txt").write_text("gray/val0.png\n")
    before = (data / "gray" / "val0.png").read_bytes()
    options = ["DATA.data_root", data, "TEST.test_list", tiny.out / "list.txt", "TEST.split", "test"]
    line = fails("test_18.py", "--config", tiny.path, *options, "TEST.save_folder", data)
    assert "gray/val0.png would be written over" in line and (data / "gray" / "val0.png").read_bytes() == before


def test_the_demo_does_not_write_over_its_pictures(tiny, model, fails):
    folder = tiny.out / "shots" / "color"
    folder.mkdir(parents=True)
    shutil.copy(tiny.root / "val0.jpg", folder / "x.png")
    before = (folder / "x.png").read_bytes()
    line = fails("tool/demo.py", "--config", tiny.path, folder, "--out", tiny.out / "shots")
    assert "color/x.png would be written over" in line and (folder / "x.png").read_bytes() == before


def test_an_export_does_not_write_over_the_checkpoint(tiny, model, fails):
    before = model.read_bytes()
    other = tiny.out / "model" / ".." / "model" / model.name
    line = fails("tool/export/export.py", "--config", tiny.path, "--to", "state_dict", "--out", other)
    assert "would be written over" in line and model.read_bytes() == before


def test_pictures_of_one_name_have_maps_of_their_own(tiny, model, script):
    folder = tiny.out / "pair"
    folder.mkdir()
    for name in ("a.jpg", "a.png"):
        shutil.copy(tiny.root / "val0.jpg", folder / name)
    assert script("tool/demo.py", "--config", tiny.path, folder, "--out", tiny.out / "maps").status == 0
    assert sorted(path.name for path in (tiny.out / "maps" / "gray").iterdir()) == ["a_jpg.png", "a_png.png"]
