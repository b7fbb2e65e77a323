"""Photograph-like pictures to measure input and testing with, where no dataset is at hand."""

from pathlib import Path

import cv2
import numpy as np

from util import config
from util.config import Config

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 21


def make(folder: Path, count: int, height: int = 375, width: int = 500) -> None:
    """`count` JPEGs (quality 95, noise of several scales: some 100 KB each at 500x375) and labels, list, names.

    Labels are smooth blobs of 21 classes with void seams, as gray PNGs: of VOC's size and shape.
    """
    rng = np.random.default_rng(0)
    for i in range(count):
        image = np.zeros((height, width, 3), np.float32)
        for cells, strength in ((4, 60), (16, 40), (64, 25), (256, 12)):
            noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i}.jpg"), np.clip(image + 116, 0, 255).astype(np.uint8))
        blobs = cv2.resize(rng.normal(0, 1, (6, 6, 4)).astype(np.float32), (width, height))
        label = (blobs.argmax(2) * 5 + rng.integers(0, 5)).astype(np.uint8)
        label[cv2.morphologyEx(label, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0] = 255
        cv2.imwrite(str(folder / f"{i}.png"), label)
    (folder / "list.txt").write_text("".join(f"{i}.jpg {i}.png\n" for i in range(count)))


def configuration(folder: Path, script: str, *overrides: object) -> Config:
    """The voc2012 config of `script`, reading what make() wrote to `folder` and writing there."""
    lists = folder / "list.txt"
    ours = [
        "DATA.data_root", folder, "DATA.train_list", lists, "DATA.val_list", lists, "TEST.test_list", lists,
        "DATA.names_path", ROOT / "dataset/voc2012/voc2012_names.txt",
        "DATA.colors_path", ROOT / "dataset/voc2012/voc2012_colors.txt",
        "TRAIN.pretrained", "none", "TRAIN.save_path", folder / "model", "TEST.save_folder", folder / "result",
        "TEST.model_path", folder / "model.pth",
    ]  # fmt: skip
    return config.load(ROOT / f"config/voc2012/voc2012_{script}.yaml", [str(part) for part in (*ours, *overrides)])
