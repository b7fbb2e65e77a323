"""What README.md shows is true: the files that it names exist, and its worked example runs."""

import re

import numpy as np
import pytest
from conftest import ROOT, python, scene
from PIL import Image

README = (ROOT / "README.md").read_text()


def test_your_own_dataset(tmp_path):
    """The section's three files and its YAML, word for word, in a copy of the layout; then one tiny epoch."""
    yaml = re.search(r"```yaml\n(# (config/\S+):.*?)```", README, re.DOTALL)
    listed = dict(re.findall(r"^    (dataset/roads/\S+\.txt) +one \w+ a line: (.*)$", README, re.MULTILINE))
    names, colors, pairs = listed.values()
    config = tmp_path / yaml[2]
    config.parent.mkdir(parents=True)
    base = re.search(r"base: (\S+)", yaml[1])[1]
    config.write_text(yaml[1].replace(base, str((ROOT / "config/roads" / base).resolve())))
    folder = tmp_path / "dataset" / "roads"
    for name in ("image", "label", "list"):
        (folder / name).mkdir(parents=True)
    (folder / "roads_names.txt").write_text("\n".join(names.split(", ")))
    (folder / "roads_colors.txt").write_text("\n".join(colors.split(", ")))
    image_path, label_path = pairs.split("   ")[0].split()
    for split, times in (("train", 4), ("val", 1)):
        (folder / "list" / f"{split}.txt").write_text(f"{image_path} {label_path}\n" * times)
    image, label = scene(np.random.default_rng(0), 40, 60)
    Image.fromarray(image).save(folder / image_path)
    Image.fromarray(np.where(label == 3, 2, label).astype(np.uint8)).save(folder / label_path)
    tiny = "TRAIN.pretrained none TRAIN.epochs 1 TRAIN.batch_size 4 TRAIN.train_h 33 TRAIN.train_w 33 TRAIN.workers 0"
    result = python(
        str(ROOT / "train_18.py"), "--config", yaml[2], *tiny.split(), "TEST.base_size", "64", folder=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "exp/roads/pspnet18/model/train_epoch_1.pth").is_file()


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[bdmtu]*/README.md")), *sorted(ROOT.glob("model/distill/*.md"))]
FOLDERS = "model|util|tool|config|figure|benchmark|tests|dataset"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    for name in re.findall(
        r"(?:model|util|tool|config|figure|benchmark|tests|dataset)/[\w/]+\.(?:py|yaml|png|svg|md)", text
    ):
        assert (ROOT / name).is_file() or "roads" in name, name
    for script in re.findall(r"python ((?:train|test)_\w+\.py|[a-z]+/[\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 130 and len(README.encode()) <= 9 * 1024
