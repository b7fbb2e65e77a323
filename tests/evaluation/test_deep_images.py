"""Images of 12 bits and masks of 0 and 255, through everything that reads them."""

import cv2
import numpy as np
import pytest
from conftest import CONFIG
from PIL import Image


@pytest.fixture
def deep(dataset, tmp_path):
    """A config of such a dataset, made of the tiny one's scenes."""
    root = tmp_path / "deep"
    root.mkdir()
    for split, count in (("train", 4), ("val", 3)):
        for i in range(count):
            image = cv2.imread(str(dataset / f"{split}{i}.jpg")).astype(np.uint16) * 16
            cv2.imwrite(str(root / f"{split}{i}.png"), image)
            mask = np.asarray(Image.open(dataset / f"{split}{i}.png")) % 2 * np.uint8(255)
            Image.fromarray(mask).save(root / f"{split}{i}_mask.png")
        (root / f"{split}.txt").write_text("".join(f"{split}{i}.png {split}{i}_mask.png\n" for i in range(count)))
    (root / "names.txt").write_text("sky\nland\n")
    (root / "colors.txt").write_text("0 0 0\n255 0 0\n")
    path = tmp_path / "deep.yaml"
    path.write_text(CONFIG.format(root=root, out=tmp_path / "run").replace("classes: 4", "classes: 2"))
    keys = ["DATA.image_max", "4095", "DATA.label_map", "{0: 0, 255: 1}", "TRAIN.pictures", "1"]
    return root, ["--config", path, *keys]


def test_training_testing_report_and_demo(deep, tmp_path, script):
    root, arguments = deep
    for name in ("train_18.py", "test_18.py"):
        result = script(name, *arguments)
        assert result.status == 0, result.err
    run = tmp_path / "run"
    result = script("tool/report/compare.py", run, "--repeats", "0", "--out", tmp_path)
    assert result.status == 0, result.err
    result = script("tool/demo.py", *arguments[:2], "--out", tmp_path / "demo", root / "val0.png", *arguments[2:])
    assert result.status == 0, result.err
    tested, shown = (
        np.asarray(Image.open(folder / "gray" / "val0.png")) for folder in (run / "result", tmp_path / "demo")
    )
    assert np.array_equal(tested, shown)
