"""report.html: one self-contained file, from the template, style and scripts in this folder."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tool.report.runs import Counts, Run, read_scene
from util.data.lists import Pair, read_colors
from util.evaluate.outputs import output_names

LONG_SIDE = 512  # of an image in the page, in pixels
QUALITY = 85
SCRIPTS = ("report.js", "report_curves.js", "report_scenes.js")


def _pack(array: NDArray[np.uint8]) -> str:
    """A class map for the page's DecompressionStream; browsers may change colours of a PNG."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


def _jpeg(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def choose(gain: NDArray[np.float64], scenes: int) -> list[int]:
    """Indices of `scenes` images: most lost, most gained, evenly spaced ones; a third each."""
    order, third = np.argsort(gain, kind="stable"), -(-scenes // 3)
    if scenes >= len(gain):
        return list(range(len(gain)))
    ends = [*order[:third], *order[::-1][:third]][:scenes]
    others = np.setdiff1d(np.arange(len(gain)), ends)
    spread = others[np.linspace(0, len(others) - 1, scenes - len(ends)).astype(int)]
    return sorted(int(index) for index in (*ends, *spread))


def _scene(runs: list[Run], counts: Counts, index: int, pair: Pair, name: str) -> dict[str, Any]:
    image, label, maps = read_scene(runs, pair, name)
    scale = min(LONG_SIDE / max(label.shape), 1)
    size = (max(round(label.shape[1] * scale), 1), max(round(label.shape[0] * scale), 1))
    if scale < 1:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        label, *maps = (cv2.resize(part, size, interpolation=cv2.INTER_NEAREST) for part in (label, *maps))
    return {
        "name": name,
        "width": size[0],
        "height": size[1],
        "image": _jpeg(image),
        "truth": _pack(label),
        "maps": [_pack(part) for part in maps],
        "counts": counts.pixels[:, index].sum(1).tolist(),  # runs x (hit, truth, predicted) x classes
        "corrected": counts.corrected[index].tolist(),
        "valid": int(counts.valid[index]),
    }


def build(report: dict[str, Any], runs: list[Run], pairs: list[Pair], counts: Counts, scenes: int) -> str:
    """The page's HTML, with at most `scenes` of the images, scaled to LONG_SIDE."""
    before = report["baseline"]
    after = report["best"] if report["best"] != before else len(runs) - 1
    gain = (counts.corrected[:, before, after] - counts.corrected[:, after, before]) / np.maximum(counts.valid, 1)
    names = output_names([pair.image for pair in pairs])
    content = {
        "report": report,
        "before": before,
        "after": after,
        "colors": read_colors(runs[0].data)[: runs[0].data.classes].tolist(),
        "history": [run.history for run in runs],
        "scenes": [_scene(runs, counts, i, pairs[i], names[i]) for i in choose(gain, scenes)],
    }
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")  # a class's name may hold </script>
    folder = Path(__file__).parent
    page = (folder / "report.html").read_text()
    for mark, part in (
        ("/* style */", (folder / "report.css").read_text()),
        ("/* script */", "\n".join((folder / name).read_text() for name in SCRIPTS)),
        ("/* data */", text),
    ):
        page = page.replace(mark, part, 1)
    return page
