"""Broken and hostile input of every kind: one clear error that names the file, nothing written; or it just works."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, VOID
from hostile import Code, outcome, put
from hostile_checkpoints import CHECKPOINTS, RESUMES, STATE, layer, saved
from hostile_pictures import GRAY, IMAGES, JPEG, LABELS, PICTURE
from hostile_text import GOOD, LISTS, YAML

from util import checkpoint, config
from util.data.decode import read_image
from util.data.lists import read_colors, read_list, scored_list
from util.data.loader import TrainData
from util.train.resume import resume


def each(found):
    return pytest.mark.parametrize("case", found, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """No input may run the command that it holds."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("pwned").exists()


@each(YAML)
def test_yaml(tmp_path, case):
    put(tmp_path / "good.yaml", GOOD)
    path = put(tmp_path / "x.yaml", case.what)
    with outcome(case.expected, "" if "base" in case.name else str(path)):
        config.load(path)


@each(LISTS)
def test_lists(tmp_path, case):
    for folder in ("data/image", "data/label", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("data/image/a.jpg", "data/image/ä日.jpg", "outside/a.jpg", "secret.jpg"):
        put(tmp_path / name, JPEG)
    put(tmp_path / "data/label/a.png", GRAY)
    (tmp_path / "data/link").symlink_to(tmp_path / "outside")
    path = put(tmp_path / "list.txt", case.what)
    with outcome(case.expected, "" if case.expected == "is no file" else str(path)):
        for pair in read_list(str(path), "DATA.train_list", "data"):
            read_image(pair.image, None)


def test_lists_may_name_files_anywhere(tmp_path):
    (tmp_path / "data").mkdir()
    image = put(tmp_path / "a.jpg", JPEG)
    path = put(tmp_path / "list.txt", f"../a.jpg {image}\n")
    (pair,) = read_list(str(path), "DATA.train_list", "data")
    assert pair.image.samefile(image) and pair.label.samefile(image)


def test_a_scored_image_stands_in_its_list_once(tiny, tmp_path):
    path = put(tmp_path / "list.txt", "val0.jpg val0.png\nval1.jpg val1.png\n./val0.jpg val0.png\n")
    with outcome("line 3: .*line 1, too", str(path)):
        scored_list(str(path), "DATA.val_list", tiny.load().data)


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
def test_what_is_no_file(tmp_path, kind):
    """A pipe would be waited for without end."""
    make = {"folder": Path.mkdir, "pipe": os.mkfifo, "dangling link": lambda path: path.symlink_to("gone")}
    make[kind](tmp_path / "a.jpg")
    with outcome("is no file", "a.jpg"):
        read_image(tmp_path / "a.jpg", None)


def crop_of(tiny, image, label):
    """One training crop, as a worker makes it."""
    put(tiny.out / "i.jpg", image)
    put(tiny.out / "l.png", label)
    path = put(tiny.out / "list.txt", "i.jpg l.png\n")
    cfg = tiny.load("DATA.train_list", str(path), "DATA.data_root", str(tiny.out))
    made = TrainData(cfg.data, cfg.train, 0)[0, 0]
    if isinstance(made, Exception):
        raise made
    return made


@each(IMAGES)
def test_images(tiny, case):
    with outcome(case.expected, str(tiny.out)):
        image, label, _ = crop_of(tiny, case.what, GRAY)
        assert image.shape == (33, 33, 3) and image.dtype == np.uint8 and label.shape == (33, 33)
    if case.name.startswith(("EXIF", "CMYK", "16 bits", "alpha")) and case.name != "16 bits gray":
        shown = read_image(tiny.out / "i.jpg", None).astype(int)
        assert np.abs(shown - PICTURE).mean() < 8 < np.abs(shown[:, ::-1] - PICTURE).mean()


@each(LABELS)
def test_labels(tiny, case):
    with outcome(case.expected, "l.png"):
        _, label, _ = crop_of(tiny, JPEG, case.what)
        assert set(np.unique(label)) <= {*range(CLASSES), VOID}


@pytest.mark.parametrize(
    "text", ["0 0", "0 0 0 0\n" * 3, "0 0 256\n" * 4, "-1 0 0\n" * 4, "a b c\n" * 4, "1e1 0 0\n" * 4]
)
def test_colours(tiny, text):
    path = put(tiny.out / "colors.txt", text)
    with outcome("three numbers from 0 to 255", str(path)):
        read_colors(tiny.load("DATA.colors_path", str(path)).data)


@each(CHECKPOINTS)
def test_checkpoints(tmp_path, case):
    path, net = put(tmp_path / "x.pth", case.what), layer()
    with outcome(case.expected, str(path)):
        state = checkpoint.network_state(path, "student")
        checkpoint.check_match(state, net.state_dict(), path, "the layer")
        net.load_state_dict(state)
        assert all(torch.allclose(value, STATE[key], atol=1e-3) for key, value in net.state_dict().items())


def resumed(tiny, *overrides):
    """What a run of one layer resumes from."""
    net = layer()
    optimizer = torch.optim.SGD([{"params": [value]} for value in net.parameters()], 0.1, momentum=0.9)
    net(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    return resume(tiny.load("TRAIN.save_path", str(tiny.out / "run"), *overrides), net, optimizer)


@each(RESUMES)
def test_checkpoints_to_resume(tiny, case):
    (tiny.out / "run").mkdir()
    writer = resumed(tiny)
    writer.step = 2
    writer.save("train_epoch_1.pth")
    path = tiny.out / "run" / "train_epoch_1.pth"
    assert resumed(tiny).step == 2
    put(path, saved(case.content(checkpoint.read(path))))
    with outcome("", path.name):
        resumed(tiny)


@pytest.mark.parametrize(
    ("script_name", "key", "content"),
    [
        ("train_18.py", "DATA.train_list", b"gone.jpg gone.png\n"),
        ("train_18.py", "TRAIN.weight", saved({"state_dict": Code()}, pickle_protocol=2)),
        ("train_18.py", "TRAIN.pretrained", b"\0" * 99),
        ("train_50_18.py", "DISTILL.teacher_path", saved({"state_dict": STATE})),
        ("test_18.py", "TEST.model_path", saved({"state_dict": STATE})[:900]),
        ("test_18.py", "TEST.test_list", b"\xef\xbb\xbf\r\n"),
    ],
)
def test_scripts_write_nothing(tiny, fails, script_name, key, content):
    path = put(tiny.out / "x", content)
    assert str(path) in fails(script_name, "--config", tiny.path, key, path)
    assert not (tiny.out / "model").exists() or not list((tiny.out / "model").glob("[!.]*"))
    assert not (tiny.out / "result").exists()
