"""The prepare scripts on small sources of exactly the official layouts."""

import io
import runpy
import tarfile

import numpy as np
import pytest
from conftest import ROOT, python, save_palette
from PIL import Image
from scipy.io import savemat

from util.data.decode import read_label
from util.data.lists import read_list
from util.errors import UserError

VAL, TRAIN, SBD_ONLY = ["2007_000033", "2007_000042"], ["2007_000032"], ["2008_000002", "2008_000003", "2009_000001"]


def label_of(name, value):
    label = np.zeros((20, 24), np.uint8)
    label[5:15, 6:18] = value
    label[5, 6:18] = 255
    return label


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """VOCdevkit/VOC2012 and benchmark_RELEASE as folders. SBD has labels of a train and of a val image, too."""
    root = tmp_path_factory.mktemp("official")
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation", "Annotations"):
        (voc / folder).mkdir(parents=True)
    for folder in ("cls", "inst", "img"):
        (sbd / folder).mkdir(parents=True)
    for name in VAL + TRAIN + SBD_ONLY + ["2012_009999"]:
        Image.new("RGB", (24, 20), (90, 30, 10)).save(voc / "JPEGImages" / f"{name}.jpg")
    for i, name in enumerate(VAL + TRAIN):
        save_palette(label_of(name, i + 1), voc / "SegmentationClass" / f"{name}.png")
        save_palette(label_of(name, 1), voc / "SegmentationObject" / f"{name}.png")
    for split, names in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL)):
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    for i, name in enumerate(SBD_ONLY + TRAIN + VAL[:1]):
        label = np.where(label_of(name, 10 + i) == 255, 0, label_of(name, 10 + i))
        struct = {"Segmentation": label, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": np.array([10 + i])}
        for folder in ("cls", "inst"):
            savemat(sbd / folder / f"{name}.mat", {"GTcls" if folder == "cls" else "GTinst": struct})
    (sbd / "train.txt").write_text("\n".join(SBD_ONLY))
    (sbd / "val.txt").write_text("\n".join(TRAIN + VAL[:1]))
    return root


def archives(sources, folder):
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar", "w") as tar:
        tar.add(sources / "VOCdevkit", "VOCdevkit")
    with tarfile.open(folder / "benchmark.tgz", "w:gz") as tar:
        tar.add(sources / "benchmark_RELEASE", "benchmark_RELEASE")
    return folder / "VOCtrainval_11-May-2012.tar", folder / "benchmark.tgz"


def prepare(voc, sbd, out, *options):
    return python("dataset/voc2012/prepare.py", "--voc", voc, "--sbd", sbd, "--out", out, *options)


def check(out):
    lists = {name: (out / "list" / f"{name}.txt").read_text() for name in ("train_aug", "train", "val")}
    names = {key: [line.split("/")[1].split(".")[0] for line in text.splitlines()] for key, text in lists.items()}
    assert names == {"train_aug": sorted(SBD_ONLY + TRAIN), "train": TRAIN, "val": VAL}
    for key in lists:
        for pair in read_list(str(out / "list" / f"{key}.txt"), "x", str(out)):
            values = np.unique(read_label(pair.label, (20, 24), 21, 255)).tolist()
            name = pair.image.stem
            if name in SBD_ONLY:  # SBD has no border
                assert values == [0, 10 + SBD_ONLY.index(name)]
            else:
                assert values == [0, (VAL + TRAIN).index(name) + 1, 255]


def contents(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["archives", "folders"])
def test_voc2012(sources, tmp_path, kind):
    before = contents(sources)
    voc, sbd = archives(sources, tmp_path)
    if kind == "folders":
        voc, sbd = sources / "VOCdevkit" / "VOC2012", sources / "benchmark_RELEASE"
    out = tmp_path / "out"
    result = prepare(voc, sbd, out, "--subset")
    assert result.returncode == 0, result.stderr
    check(out)
    assert "aeroplane" in result.stdout and "train_aug.txt: 4 images" in result.stdout
    assert contents(sources) == before
    # interrupted: some files are missing, one link is dead, the lists are not there yet
    (out / "label" / f"{SBD_ONLY[0]}.png").unlink()
    (out / "image" / f"{VAL[0]}.jpg").unlink()
    (out / "image" / f"{VAL[0]}.jpg").symlink_to("gone.jpg")
    (out / "list" / "val.txt").unlink()
    kept = (out / "label" / f"{SBD_ONLY[1]}.png").stat().st_mtime_ns
    assert prepare(voc, sbd, out, "--subset").returncode == 0
    check(out)
    assert (out / "label" / f"{SBD_ONLY[1]}.png").stat().st_mtime_ns == kept


def one_error(result, *words):
    lines = [line for line in result.stderr.splitlines() if line.strip() and "\r" not in line and "it/s" not in line]
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert lines[-1].startswith("error: ")
    for word in words:
        assert word in lines[-1]


def test_sources_that_are_not_whole(sources, tmp_path):
    voc, sbd = archives(sources, tmp_path)
    one_error(prepare(voc, sbd, tmp_path / "a"), "train_aug 4 instead of 10582", "--subset")
    assert not list((tmp_path / "a" / "list").iterdir())
    one_error(prepare(sbd, sbd, tmp_path / "b", "--subset"), "ImageSets/Segmentation/train.txt")
    one_error(prepare(voc, voc, tmp_path / "c", "--subset"), "no cls/*.mat")
    one_error(prepare(tmp_path / "gone.tar", sbd, tmp_path / "d", "--subset"), "gone.tar does not exist")
    short = tmp_path / "short.tgz"
    short.write_bytes(sbd.read_bytes()[:-400])
    one_error(prepare(voc, short, tmp_path / "e", "--subset"), "short.tgz", "cut short")
    (tmp_path / "text.tar").write_text("not an archive")
    one_error(prepare(tmp_path / "text.tar", sbd, tmp_path / "f", "--subset"), "text.tar is no archive")


def test_half_unpacked_and_damaged(sources, tmp_path):
    voc, sbd = archives(sources, tmp_path)
    with tarfile.open(voc) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages" / f"{SBD_ONLY[1]}.jpg").unlink()
    one_error(prepare(folder, sbd, tmp_path / "a", "--subset"), "lacks the image of 2008_000003")
    damaged = tmp_path / "damaged.tgz"
    with tarfile.open(damaged, "w:gz") as tar:
        entry = tarfile.TarInfo("benchmark_RELEASE/dataset/cls/2008_000002.mat")
        entry.size = 100
        tar.addfile(entry, io.BytesIO(b"x" * 100))
    one_error(prepare(voc, damaged, tmp_path / "b", "--subset"), "cls/2008_000002.mat cannot be read")
    one_error(python("dataset/voc2012/prepare.py", "--voc", voc), "--sbd")


def test_download_without_network(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", refuse)
    prepare_module = runpy.run_path(str(ROOT / "dataset/voc2012/prepare.py"))
    with pytest.raises(UserError, match=r"no route to host.*--voc and --sbd"):
        prepare_module["download"](tmp_path)


def test_camvid(tmp_path):
    source = tmp_path / "CamVid"
    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (source / folder).mkdir(parents=True)
            Image.new("L", (8, 6)).save(source / folder / "a.png")
        line = f"/SegNet/CamVid/{split}/a.png /SegNet/CamVid/{split}annot/a.png\n"
        (source / f"{split}.txt").write_text(line)
    out = tmp_path / "camvid"
    for _ in range(2):  # a second run finds its own links
        result = python("dataset/camvid/prepare.py", source, "--out", out)
        assert result.returncode == 0, result.stderr
        (pair,) = read_list(str(out / "list" / "val.txt"), "DATA.val_list", str(out))
        assert pair.image == out / "val" / "a.png"
    (source / "train.txt").write_text("/SegNet/CamVid/train/b.png /SegNet/CamVid/trainannot/b.png\n")
    one_error(python("dataset/camvid/prepare.py", source, "--out", out), "b.png does not exist")
    assert (out / "list" / "train.txt").read_text() == "train/a.png trainannot/a.png\n"
    one_error(python("dataset/camvid/prepare.py", tmp_path), "train.txt", "does not exist")
