"""What README.md shows is true: the files that it names exist, and its worked example runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, scene
from PIL import Image

from tool import pipeline

README = (ROOT / "README.md").read_text()


def test_your_own_dataset(tmp_path, script, monkeypatch):
    """The section's lists and YAML files, word for word, in a copy of the layout; then its commands, tiny."""
    block = re.search(r"```yaml\n(# config/roads/.*?)```", README, re.DOTALL)[1]
    listed = dict(re.findall(r"^    (dataset/roads/\S+\.txt) +a line each: (.*)$", README, re.MULTILINE))
    names, colors, pairs = listed.values()
    for name, text in re.findall(r"# (config/\S+\.yaml)\n(.*?)(?=# config|\Z)", block, re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace("../voc2012", str(ROOT / "config/voc2012")))
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
    few = re.search(r"Few images, a CPU, offline: `([^`]*)`", README)[1]
    first = tmp_path / "config/roads/roads_pspnet18.yaml"  # which the others inherit from
    once = few.replace("epochs: 20", "epochs: 1")
    first.write_text(first.read_text().replace("TRAIN: {", f"TRAIN: {{{once}, "))
    assert once in first.read_text() and once != few
    tiny = "TRAIN.train_h 33 TRAIN.train_w 33 TRAIN.workers 0 TEST.base_size 64".split()
    monkeypatch.chdir(tmp_path)
    for run in ("50", "18", "50_18"):
        for name in (f"train_{run}.py", f"test_{run}.py"):
            result = script(name, "--config", f"config/roads/roads_pspnet{run}.yaml", *tiny)
            assert result.status == 0, result.err
    assert "    python tool/pipeline.py --dataset roads  " in README
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    runs = pipeline.three_runs("roads", 0, Path("exp/roads"), None, tiny)
    assert (
        script(
            "tool/report/compare.py", *(run.load().train.save_path.removesuffix("/model") for run in runs.values())
        ).status
        == 0
    )


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[bdmtu]*/README.md")), *sorted(ROOT.glob("model/distill/*.md"))]
PAGES += [ROOT / "benchmark" / "PROTOCOL.md", ROOT / "benchmark" / "RESULTS.md"]
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
