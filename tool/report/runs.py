"""Finished runs as tool/report/compare.py reads them: scores, curves, and counts of pixels for every image."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from util.config import Data
from util.data.decode import read_image, read_label
from util.data.lists import Pair, scored_list
from util.errors import UserError
from util.evaluate.metric import confusion_matrix, iou
from util.evaluate.testing import output_names, read_map

BORDER, INSIDE = 0, 1  # regions; see near_border
HIT, TRUTH, PREDICTED = 0, 1, 2  # kinds of counts
NEEDED = {"mIoU", "mAcc", "allAcc", "classes", "images", "protocol", "data", "ignore_label", "network"}


@dataclass
class Run:
    """An experiment's folder: result/metrics.json, result/gray/NAME.png and, where it is there, model/metrics.jsonl."""

    folder: Path
    name: str  # the folder's, with as many parents as tell it from the others
    metrics: dict[str, Any]
    data: Data
    history: list[dict[str, float]]  # a dict an epoch
    role: str = "other"  # teacher, student, distilled or other
    title: str = ""  # by which tables and pictures call it: its role, or its name where that tells more

    @property
    def checkpoint(self) -> Path:
        """What was tested: where the test found it, or in model/, should the folder have moved since."""
        path = Path(self.metrics["protocol"]["checkpoint"])
        moved = self.folder / "model" / path.name
        return moved if moved.is_file() else path


@dataclass
class Counts:
    """What the images say about the runs, in the runs' order.

    pixels: (runs, images, 2 regions, 3 kinds, classes), pixels of each class that were hit, true, predicted.
    turned: (images, runs, runs), pixels that the first run has wrong and the second right.
    valid: (images,), pixels that are not void. border: width in pixels of each image's border region, (images,).
    """

    pixels: NDArray[np.int64]
    turned: NDArray[np.int64]
    valid: NDArray[np.int64]
    border: NDArray[np.int64]


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"{path} is no JSON; test or train that network again") from None


def read(folder: Path) -> Run:
    """Raises UserError for a folder that holds no tested run."""
    path = folder / "result" / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; test that network first, or name the folder that holds its result/")
    metrics = _json(path.read_text(), path)
    if "data" not in metrics:
        raise UserError(
            f"{path} does not name its dataset, it is of an older test; test again (TEST.has_prediction True)"
        )
    try:
        data = Data(**metrics["data"])
    except (ValidationError, TypeError):
        raise UserError(
            f"{path}: its entry `data` is not the DATA section of a config; test that network again"
        ) from None
    curves = folder / "model" / "metrics.jsonl"
    text = curves.read_text() if curves.is_file() else ""
    lines = [
        _json(line, curves) for line in text[: text.rfind("\n") + 1].splitlines()
    ]  # a last one may be half written
    history = [{k: v for k, v in line.items() if isinstance(v, int | float) and math.isfinite(v)} for line in lines]
    return Run(folder, folder.name, metrics, data, history)


def read_all(folders: list[Path], teacher: Path | None = None, student: Path | None = None) -> list[Run]:
    """The runs of `folders`, checked to be of one dataset, named apart, and given roles.

    A run with a DISTILL section is distilled; one that is not, and as deep as a distilled one's teacher, is the
    teacher; one as deep as the distilled student is the student alone. teacher, student: folders that say otherwise.
    """
    runs = [read(folder) for folder in dict.fromkeys(folders)]
    for run in runs[1:]:
        _check_same(runs[0], run)
    depth = 1
    while len({run.name for run in runs}) < len(runs):
        depth += 1
        for run in runs:
            run.name = "/".join(run.folder.resolve().parts[-depth:])
    networks = [run.metrics["network"] for run in runs]
    distilled = [network for network in networks if network["teacher_layers"]]
    depths = {
        "teacher": {network["teacher_layers"] for network in distilled},
        "student": {network["layers"] for network in distilled},
    }
    named = {"teacher": teacher, "student": student}
    for role, folder in named.items():
        if folder is None:
            continue
        found = [run for run in runs if run.folder.resolve() == folder.resolve()]
        if not found:
            raise UserError(f"--{role} {folder} is not one of the runs to compare")
        found[0].role = role
    for run, network in zip(runs, networks, strict=True):
        for role in ("teacher", "student"):
            free = run.role == "other" and role not in [other.role for other in runs]
            if free and not network["teacher_layers"] and network["layers"] in depths[role]:
                run.role = role
        if network["teacher_layers"] and run.role == "other":
            run.role = "distilled"
    roles = [run.role for run in runs]
    for run in runs:
        unclear = run.role == "other" or roles.count(run.role) > 1
        run.title = run.name if unclear else {"student": "student alone"}.get(run.role, run.role)
    order = ["teacher", "student", "distilled", "other"]
    return sorted(runs, key=lambda run: order.index(run.role))


def _check_same(first: Run, other: Run) -> None:
    """Raise UserError unless both were tested on the same images with the same classes."""
    paths = f"{first.folder} and {other.folder}"
    names = [[c["name"] for c in run.metrics["classes"]] for run in (first, other)]
    if names[0] != names[1]:
        extra = ", ".join(sorted(set(names[0]) ^ set(names[1]))[:4])
        raise UserError(f"{paths} have different classes ({extra or 'in another order'}); compare runs of one dataset")
    for key, a, b in (
        ("list", *(run.metrics["protocol"]["list"] for run in (first, other))),
        ("images", *(run.metrics["images"] for run in (first, other))),
        ("data_root", first.data.data_root, other.data.data_root),
        ("ignore_label", *(run.metrics["ignore_label"] for run in (first, other))),
    ):
        if a != b:
            raise UserError(f"{paths} were tested on different data ({key}: {a} and {b}); compare runs of one dataset")


def pairs_of(run: Run) -> list[Pair]:
    """The images and labels that the runs were tested on."""
    path = run.metrics["protocol"]["list"]
    pairs = scored_list(path, f"of {run.folder}/result/metrics.json", run.data)
    if len(pairs) != run.metrics["images"]:
        raise UserError(
            f"{run.folder} was tested on {run.metrics['images']} images, {path} lists {len(pairs)}; test all"
        )
    return pairs


def read_scene(
    runs: list[Run], pair: Pair, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """-> image (H, W, 3), label (H, W), each run's class map (H, W)."""
    image, classes = read_image(pair.image), runs[0].data.classes
    shape = image.shape[:2]
    label = read_label(pair.label, shape, classes, runs[0].metrics["ignore_label"])
    return image, label, [read_map(run.folder / "result" / "gray", name, shape, classes) for run in runs]


def near_border(label: NDArray[np.uint8], share: float) -> tuple[NDArray[np.bool_], int]:
    """(H, W): whether a pixel lies within `share` of the image's diagonal of one with another label; and that width.

    Boundary IoU (Cheng et al., CVPR 2021) measures the width by the diagonal, too. Void counts as a label.
    """
    width = max(round(share * float(np.hypot(*label.shape))), 1)
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return cv2.dilate(label, square) != cv2.erode(label, square), width


def count(runs: list[Run], pairs: list[Pair], border: float) -> Counts:
    """One pass over images, labels and class maps. Raises UserError where maps do not give the scores beside them."""
    classes, void = runs[0].data.classes, 255  # no class: DATA.classes is at most 255
    names = output_names(pairs, runs[0].folder)
    pixels = np.zeros((len(runs), len(pairs), 2, 3, classes), np.int64)
    turned = np.zeros((len(pairs), len(runs), len(runs)), np.int64)
    valid, widths = np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.int64)
    for i, pair in enumerate(tqdm(pairs, "compare", leave=False, disable=None)):
        _, label, maps = read_scene(runs, pair, names[i])
        near, widths[i] = near_border(label, border)
        for r, prediction in enumerate(maps):
            for region, mask in ((BORDER, near), (INSIDE, ~near)):
                part = torch.from_numpy(np.where(mask, label, void))
                matrix = confusion_matrix(torch.from_numpy(prediction.copy()), part, classes).numpy()
                pixels[r, i, region] = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        counted = label < classes
        right = [(prediction == label) & counted for prediction in maps]
        valid[i] = counted.sum()
        turned[i] = [[(~a & b).sum() for b in right] for a in right]
    for run, own in zip(runs, pixels.sum((1, 2)), strict=True):
        if abs(iou(*own).mean() - run.metrics["mIoU"]) > 1e-6:
            raise UserError(
                f"the maps in {run.folder}/result/gray are not those its metrics.json scored; test it again"
            )
    return Counts(pixels, turned, valid, widths)
