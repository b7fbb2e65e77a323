"""tool/demo.py: pictures, folders, videos and streams in; maps, colours and overlays out."""

import io
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_pspnet
from PIL import Image

from tool import frames


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


def test_video(tiny, demo, script):
    path = tiny.out / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    result = script(*demo, path)
    assert result.status == 0 and "5 frames" in result.err and "(the source: 12)" in result.err
    video = cv2.VideoCapture(str(tiny.out / "demo" / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and video.get(cv2.CAP_PROP_FPS) == 12


def test_stream_from_stdin_to_stdout(tiny, demo):
    pictures = [(tiny.root / f"val{i}.jpg").read_bytes() for i in range(3)]
    command = [sys.executable, "tool/demo.py", "--config", tiny.path, "--out", "-", "-"]
    result = subprocess.run(command, cwd=ROOT, input=b"".join(pictures), capture_output=True, timeout=300)
    assert result.returncode == 0 and b"3 frames" in result.stderr, result.stderr
    shown = list(frames._decode(frames._jpegs(io.BytesIO(result.stdout))))
    assert len(shown) == 3 and all(frame.shape[1] >= 480 for frame in shown)


def test_jpegs_are_split_at_their_ends():
    """Also with a thumbnail inside, which ends like a picture, with restart reserved_labels, and progressive."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8)).save(thumbnail, "JPEG")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    parts = []
    for options in (
        {},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"exif": b"Exif\0\0" + thumbnail.getvalue()},
    ):
        file = io.BytesIO()
        noise.save(file, "JPEG", **options)
        parts.append(file.getvalue())
    assert list(frames._jpegs(io.BytesIO(b"".join(parts)))) == parts
    assert list(frames._jpegs(io.BytesIO(parts[0] + parts[1][:-9])))[0] == parts[0]  # cut off while being sent
    assert list(frames._jpegs(io.BytesIO(b"\x89PNG and more"))) == [b"\x89PNG and more"]


def test_live_frames_that_came_too_fast_are_counted():
    taken = list(frames.ahead(iter([np.zeros((2, 2, 3), np.uint8)] * 50), live=True))
    assert sum(count for _, count in taken) == 50
    assert len(list(frames.ahead(iter([np.zeros((2, 2, 3), np.uint8)] * 50), live=False))) == 50


def test_what_is_no_picture(tiny, demo, fails):
    (tiny.out / "text.jpg").write_text("no picture")
    (tiny.out / "text.txt").write_text("no picture")
    (tiny.out / "empty").mkdir()
    assert "text.jpg" in fails(*demo, tiny.out / "text.jpg")
    assert "text.txt is no picture or video" in fails(*demo, tiny.out / "text.txt")
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
