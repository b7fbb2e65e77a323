"""comparison.png: image, truth and the predictions of several runs side by side, with a legend."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.config import Config
from util.data.lists import read_colors, read_names, read_pair, scored_list
from util.evaluate.outputs import output_names
from util.evaluate.testing import read_map

SCENES = 6
WIDTH = 240  # of a panel, in pixels
VOID_COLOR = (224, 224, 224)
GAP, LINE = 6, 26  # between panels; of text
FONT, SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.5


def _write_text(canvas: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    cv2.putText(canvas, text, (x, y), FONT, SIZE, (20, 20, 20), 1, cv2.LINE_AA)


def legend(entries: list[tuple[str, tuple[int, int, int]]], width: int) -> NDArray[np.uint8]:
    """entries: (name, RGB colour) -> (height, width, 3), in as many columns as fit."""
    column = max(cv2.getTextSize(name, FONT, SIZE, 1)[0][0] for name, _ in entries) + 36
    columns = max(width // column, 1)
    canvas = np.full((LINE * -(-len(entries) // columns), width, 3), 255, np.uint8)
    for i, (name, color) in enumerate(entries):
        x, y = i % columns * column, i // columns * LINE
        canvas[y + 6 : y + 20, x + 4 : x + 22] = color
        _write_text(canvas, name, x + 28, y + 18)
    return canvas


def comparison(cfg: Config, results: dict[str, Path], folder: Path) -> None:
    """Write folder/comparison.png for SCENES evenly spaced images of TEST.test_list.

    results: title -> TEST.save_folder of a tested run.
    """
    pairs = scored_list(cfg.test.test_list, "TEST.test_list", cfg.data)
    colors = read_colors(cfg.data).copy()
    names = read_names(cfg.data)
    colors[cfg.train.ignore_label] = VOID_COLOR
    maps, rows = output_names([pair.image for pair in pairs]), []
    for index in np.linspace(0, len(pairs) - 1, min(SCENES, len(pairs))).astype(int):
        image, label = read_pair(pairs[index], cfg.data, cfg.train.ignore_label)
        panels = [image, colors[label]]
        for result in results.values():
            panels.append(colors[read_map(result / "gray", maps[index], label.shape, cfg.data.classes)])
        height = round(image.shape[0] * WIDTH / image.shape[1])
        panels = [cv2.resize(p, (WIDTH, height), interpolation=cv2.INTER_NEAREST) for p in panels]
        panels = [cv2.copyMakeBorder(p, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255,) * 3) for p in panels]
        rows.append(np.concatenate(panels, 1))
    width = rows[0].shape[1]
    titles = np.full((LINE, width, 3), 255, np.uint8)
    for i, title in enumerate(["image", "truth", *results]):
        _write_text(titles, title, i * (WIDTH + GAP) + 4, 18)
    entries = [*zip(names, colors, strict=False), ("ignored", VOID_COLOR)]
    picture = np.concatenate([titles, *rows, legend(entries, width)])
    Image.fromarray(picture).save(folder / "comparison.png", optimize=True)
