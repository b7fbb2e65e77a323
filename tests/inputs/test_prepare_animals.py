"""dataset/animals/prepare.py on small sources."""

import numpy as np
import pytest
from conftest import ROOT, python, save_palette
from PIL import Image
from test_prepare import contents, one_error

from util.data.decode import read_label
from util.data.lists import read_list

ANIMALS = {  # VOC's classes 8, 10, 12, 13, 15 and 17 are cat .. sheep; 1 and 9 are none of the seven
    "2007_000001": ([0, 8, 1, 255], [0, 1, 255, 255]),
    "2007_000002": ([10, 12, 13, 20], [2, 3, 4, 255]),
    "2007_000003": ([15, 17, 9, 0], [5, 6, 255, 0]),
}


def animals_source(folder, layout, names):
    """image/ and label/ of the three images above: files, or links as dataset/voc2012/prepare.py makes of a folder."""
    for kind, suffix in (("image", "jpg"), ("label", "png")):
        (folder / kind).mkdir(parents=True)
        for name, (values, _) in ANIMALS.items():
            path = folder / kind / f"{name}.{suffix}"
            stored = folder / f"{kind}_{path.name}" if layout == "links" else path
            if kind == "image":
                Image.new("RGB", (2, 2), (90, 30, 10)).save(stored)
            else:
                save_palette(np.array(values, np.uint8).reshape(2, 2), stored)
            if layout == "links":
                path.symlink_to(stored)
    names.mkdir()
    first, second, third = ANIMALS
    for split, listed in (("train_aug", (first, second)), ("train", (second,)), ("val", (third,))):
        (names / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))


@pytest.mark.parametrize("layout", ["files", "links"])
def test_animals(tmp_path, layout):
    source, names, out = tmp_path / "voc", tmp_path / "names", tmp_path / "animals"
    animals_source(source, layout, names)
    command = ["dataset/animals/prepare.py", source, "--out", out, "--split", names]
    before = contents(source)
    for _ in range(2):  # a second run finds its own files
        result = python(*command)
        assert result.returncode == 0, result.stderr
    assert contents(source) == before
    lists = {
        name: read_list(str(out / "list" / f"{name}.txt"), "x", str(out), labelled=name != "unlabelled")
        for name in ("train_aug", "train", "val", "others", "unlabelled")
    }
    found = {name: [pair.image.stem for pair in pairs] for name, pairs in lists.items()}
    first, second, third = ANIMALS
    rest = {"others": [first], "unlabelled": [first]}
    assert found == {"train_aug": [first, second], "train": [second], "val": [third], **rest}
    for pair in lists["train_aug"] + lists["val"]:
        assert read_label(pair.label, (2, 2), 7, 255).ravel().tolist() == ANIMALS[pair.image.stem][1]

    one_error(python("dataset/animals/prepare.py", out, "--out", tmp_path / "b", "--split", names), "none of cat")
    one_error(python("dataset/animals/prepare.py", out, "--out", out, "--split", names), "what this script makes")
    one_error(python("dataset/animals/prepare.py", tmp_path, "--out", out, "--split", names), "no folder image/")
    (source / "label" / f"{first}.png").unlink()
    one_error(python(*command), f"{first}.png")
    assert (out / "list" / "train.txt").exists()  # nothing was touched yet
    (source / "label" / f"{first}.png").write_bytes(b"\x89PNG")
    one_error(python(*command), f"{first}.png")
    assert not list((out / "list").iterdir())  # labels of two sources may lie side by side: no list names them


def test_animals_made_smaller(tmp_path):
    """Images and labels shrink together; a link that an earlier run made is not written through."""
    source, names, out = tmp_path / "voc", tmp_path / "names", tmp_path / "animals"
    animals_source(source, "files", names)
    before = contents(source)
    command = ["dataset/animals/prepare.py", source, "--out", out, "--split", names]
    for more in ([], ["--longer-side", "1"], ["--longer-side", "1"]):
        result = python(*command, *more)
        assert result.returncode == 0, result.stderr
    assert contents(source) == before and len(list((out / "image").iterdir())) == 3
    for kind, suffix in (("image", "jpg"), ("label", "png")):
        with Image.open(out / kind / f"2007_000001.{suffix}") as picture:
            assert picture.size == (1, 1)
    (out / "list" / "own.txt").write_text("a list of the user's")
    one_error(python(*command), "--longer-side made")
    one_error(python(*command, "--longer-side", "-1"), "no size in pixels")
    assert python(*command, "--longer-side", "1").returncode == 0
    assert len(list((out / "list").iterdir())) == 6  # neither an error nor a run costs lists that are not its own


def test_animals_lists_that_are_committed():
    folder = ROOT / "dataset" / "animals" / "split"
    splits = {name: (folder / f"{name}.txt").read_text().split() for name in ("train_aug", "train", "val")}
    assert {name: len(set(names)) for name, names in splits.items()} == {"train_aug": 3131, "train": 437, "val": 445}
    assert {name: len(names) for name, names in splits.items()} == {"train_aug": 3131, "train": 437, "val": 445}
    assert set(splits["train"]) < set(splits["train_aug"])
    assert not set(splits["train_aug"]) & set(splits["val"])
