"""tool/demo.py: pictures, folders and videos in; maps, colours and overlays out."""

import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import tiny_pspnet
from PIL import Image


@pytest.fixture
def demo(tiny):
    """The demo's first arguments, with a checkpoint that is there."""
    (tiny.out / "model").mkdir()
    torch.save({"state_dict": tiny_pspnet().state_dict()}, tiny.out / "model" / "train_epoch_1.pth")
    return ["tool/demo.py", "--config", tiny.path, "--out", tiny.out / "demo"]


def test_pictures_are_labelled_as_in_testing(tiny, demo, script):
    assert script("test_18.py", "--config", tiny.path).status == 0
    (tiny.out / "in").mkdir()
    for i in range(3):
        shutil.copy(tiny.root / f"val{i}.jpg", tiny.out / "in")
    (tiny.out / "in" / "notes.txt").write_text("not a picture, and not taken for one")
    result = script(*demo, tiny.out / "in")
    assert result.status == 0, result.err
    for i in range(3):
        for kind in ("gray", "color"):
            ours, tested = (np.asarray(Image.open(tiny.out / out / kind / f"val{i}.png")) for out in ("demo", "result"))
            assert np.array_equal(ours, tested)
    image, overlay = (Image.open(path) for path in (tiny.root / "val0.jpg", tiny.out / "demo/overlay/val0.jpg"))
    factor = overlay.width // image.width
    assert overlay.width >= 480 and overlay.height > image.height * factor  # the legend is below
    colors = np.asarray(Image.open(tiny.out / "demo/color/val0.png").convert("RGB")).astype(float)
    mixed = (colors + np.asarray(image)) / 2
    small = overlay.crop((0, 0, overlay.width, image.height * factor)).resize(image.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small) - mixed).mean() < 12


def test_a_name_that_is_not_utf8(tiny, demo, script):
    """As old archives unpack them; OpenCV crashes on it. A file that begins with a dot is no picture of the user's."""
    (tiny.out / "in").mkdir()
    shutil.copy(tiny.root / "val0.jpg", os.fsencode(tiny.out / "in") + b"/caf\xe9.jpg")
    (tiny.out / "in" / "._val1.jpg").write_text("of macOS")
    result = script(*demo, tiny.out / "in")
    assert result.status == 0 and "._val1" not in result.out, result.err
    assert os.listdir(os.fsencode(tiny.out / "demo" / "overlay")) == [b"caf\xe9.jpg"]  # noqa: PTH208 - bytes


def test_the_teacher_can_be_shown(tiny, demo, script):
    torch.save({"state_dict": tiny_pspnet(seed=1).state_dict()}, tiny.out / "t.pth")
    keys = ["DISTILL.teacher_path", tiny.out / "t.pth", "DISTILL.teacher_layers", "18", "TEST.teacher", "True"]
    assert script("test_50_18.py", "--config", tiny.path, *keys).status == 0
    assert script(*demo, tiny.root / "val0.jpg", *keys).status == 0
    ours, tested = (np.asarray(Image.open(tiny.out / out / "gray" / "val0.png")) for out in ("demo", "result"))
    assert np.array_equal(ours, tested)
    assert script("test_18.py", "--config", tiny.path).status == 0  # the student's map is another
    assert not np.array_equal(ours, np.asarray(Image.open(tiny.out / "result/gray/val0.png")))


def test_video(tiny, demo, script):
    path = tiny.out / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    result = script(*demo, path)
    assert result.status == 0 and "5 frames" in result.err and "(source: 12)" in result.err
    video = cv2.VideoCapture(str(tiny.out / "demo" / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and video.get(cv2.CAP_PROP_FPS) == 12


def test_a_video_is_not_overwritten_by_its_overlay(tiny, demo, fails):
    path = tiny.out / "demo" / "clip.mp4"
    path.parent.mkdir()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    content = path.read_bytes()
    assert "would be written" in fails(*demo, path)
    assert path.read_bytes() == content


def test_what_is_no_picture(tiny, demo, fails):
    (tiny.out / "text.jpg").write_text("no picture")
    (tiny.out / "text.txt").write_text("no picture")
    (tiny.out / "empty").mkdir()
    assert "text.jpg cannot be decoded" in fails(*demo, tiny.out / "text.jpg")
    assert "text.txt cannot be read as a picture or video" in fails(*demo, tiny.out / "text.txt")
    assert "gone.jpg does not exist" in fails(*demo, tiny.out / "gone.jpg")
    assert "holds no picture" in fails(*demo, tiny.out / "empty")
    assert "name a picture" in fails(*demo, "TEST.flip", "False")
    assert "camera 97 cannot be opened" in fails(*demo, "97")
    assert "does not hold a PSPNet-34" in fails(*demo, tiny.root / "val0.jpg", "TRAIN.layers", "34")


def test_good_pictures_are_done_before_a_bad_one_is_named(tiny, demo, script):
    (tiny.out / "a.jpg").write_text("no picture")
    result = script(*demo, tiny.out / "a.jpg", tiny.root / "val0.jpg")
    assert result.status == 2 and "1 of 2" in result.err and "a.jpg" in result.err
    assert (tiny.out / "demo/gray/val0.png").is_file()
