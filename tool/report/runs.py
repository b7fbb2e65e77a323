"""Tested runs as tool/report/compare.py reads them: scores, curves, pixel counts of images."""

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
from util.evaluate.outputs import output_names
from util.evaluate.testing import read_map

BORDER, INSIDE = 0, 1  # regions; see near_border
HIT, TRUTH, PREDICTED = 0, 1, 2  # kinds of counts
Image = NDArray[np.uint8]
ROLES = ("teacher", "student", "distilled", "other")
NEEDED = {"mIoU", "mAcc", "allAcc", "classes", "images", "protocol", "data", "ignore_label", "network"}


@dataclass
class Run:
    """A run's folder: result/metrics.json, result/gray/NAME.png, perhaps model/metrics.jsonl."""

    folder: Path
    name: str  # the folder's, with as many parents as make it unique
    metrics: dict[str, Any]
    data: Data
    history: list[dict[str, float]]  # one dict per epoch
    role: str = "other"  # one of ROLES
    title: str = ""  # in tables and pictures: the role, or the name if several runs have that role

    @property
    def checkpoint(self) -> Path:
        """The tested checkpoint; in model/, should the folder have been moved since."""
        path = Path(self.metrics["protocol"]["checkpoint"])
        moved = self.folder / "model" / path.name
        return moved if moved.is_file() else path


@dataclass
class Counts:
    """Pixel counts per run, image, region and class; runs are in the order given to `count`.

    pixels: (runs, images, 2 regions, 3 kinds, classes), see BORDER and HIT. corrected: (images, runs,
    runs), pixels that the first run has wrong and the second right. valid: (images,), pixels that
    are not ignored. border: (images,), width in pixels of the border region.
    """

    pixels: NDArray[np.int64]
    corrected: NDArray[np.int64]
    valid: NDArray[np.int64]
    border: NDArray[np.int64]


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; test or train that network again")
    return content


def read(folder: Path) -> Run:
    """Raises UserError for a folder that holds no tested run."""
    path = folder / "result" / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; test that network first, or name the folder that holds its result/")
    metrics = _json(path.read_text(), path)
    missing = sorted(NEEDED - metrics.keys())
    if missing:
        raise UserError(f"{path} is of an older test, without {missing[0]}; test again (TEST.has_prediction True)")
    try:  # entries of keys that no longer exist are skipped
        known = {key: value for key, value in metrics["data"].items() if key in Data.model_fields}
        data = Data.model_validate_json(json.dumps(known))  # which knows that JSON's keys are text, of label_map, too
    except (ValidationError, AttributeError):
        raise UserError(f"{path}: its `data` is not the DATA section of a config; test that network again") from None
    curves = folder / "model" / "metrics.jsonl"
    text = curves.read_text() if curves.is_file() else ""
    lines = [_json(line, curves) for line in text[: text.rfind("\n") + 1].splitlines()]  # without an unfinished one
    history = [{k: v for k, v in line.items() if isinstance(v, int | float) and math.isfinite(v)} for line in lines]
    return Run(folder, folder.name, metrics, data, history)


def read_all(folders: list[Path], teacher: Path | None = None, student: Path | None = None) -> list[Run]:
    """The runs of `folders`, named uniquely and ordered by role; see _assign_roles.

    Raises UserError unless all were tested on the same images and classes.
    """
    runs = [read(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    for run in runs[1:]:
        _check_same(runs[0], run)
    depth = 1
    while len({run.name for run in runs}) < len(runs):
        depth += 1
        for run in runs:
            run.name = "/".join(run.folder.resolve().parts[-depth:])
    _assign_roles(runs, {"teacher": teacher, "student": student})
    roles = [run.role for run in runs]
    for run in runs:
        ambiguous = run.role == "other" or roles.count(run.role) > 1
        run.title = run.name if ambiguous else {"student": "student alone"}.get(run.role, run.role)
    return sorted(runs, key=lambda run: ROLES.index(run.role))


def _assign_roles(runs: list[Run], named: dict[str, Path | None]) -> None:
    """Roles follow from `named` (role -> folder), then from the depths of the networks.

    A run with a DISTILL section is distilled. The first other run as deep as a distilled run's
    teacher is the teacher, the first as deep as a distilled student is the student alone.
    """
    networks = [run.metrics["network"] for run in runs]
    for role, folder in named.items():
        found = [run for run in runs if folder and run.folder.resolve() == folder.resolve()]
        if folder and not found:
            raise UserError(f"--{role} {folder} is not one of the runs to compare")
        for run in found:
            run.role = role
    for run, network in zip(runs, networks, strict=True):
        if network["teacher_layers"] and run.role == "other":
            run.role = "distilled"
    for role, key in (("teacher", "teacher_layers"), ("student", "layers")):
        depths = {network[key] for network in networks if network["teacher_layers"]}
        alone = [run for run in runs if run.role == "other" and run.metrics["network"]["layers"] in depths]
        if alone and role not in [run.role for run in runs]:
            alone[0].role = role


def _check_same(first: Run, other: Run) -> None:
    """Raise UserError unless both were tested on the same images with the same classes."""
    paths = f"{first.folder} and {other.folder}"
    names = [[c["name"] for c in run.metrics["classes"]] for run in (first, other)]
    if names[0] != names[1]:
        extra = ", ".join(sorted(set(names[0]) ^ set(names[1]))[:4])
        raise UserError(f"{paths} have different classes ({extra or 'in another order'}); compare runs of one dataset")
    for key in ("list", "images", "data_root", "ignore_label"):
        a, b = ({**run.metrics["data"], **run.metrics["protocol"], **run.metrics}[key] for run in (first, other))
        if key in ("list", "data_root"):
            a, b = Path(a).resolve(), Path(b).resolve()
        if a != b:
            raise UserError(f"{paths} were tested on different data ({key}: {a} and {b}); compare runs of one dataset")


def pairs_of(run: Run) -> list[Pair]:
    """The images and labels that the runs were tested on."""
    path = run.metrics["protocol"]["list"]
    pairs = scored_list(path, f"of {run.folder}/result/metrics.json", run.data)
    if len(pairs) != run.metrics["images"]:
        raise UserError(f"{run.folder} was tested on {run.metrics['images']} of {path}'s {len(pairs)} images; test all")
    return pairs


def read_scene(runs: list[Run], pair: Pair, name: str) -> tuple[Image, Image, list[Image]]:
    """-> image (H, W, 3), label (H, W), each run's class map (H, W)."""
    image, classes = read_image(pair.image, runs[0].data.image_max), runs[0].data.classes
    shape = image.shape[:2]
    label = read_label(pair.label, shape, classes, runs[0].metrics["ignore_label"], runs[0].data.label_map)
    return image, label, [read_map(run.folder / "result" / "gray", name, shape, classes) for run in runs]


def near_border(label: NDArray[np.uint8], share: float) -> tuple[NDArray[np.bool_], int]:
    """-> (H, W) mask of pixels near one with another label, and the distance that counts as near.

    share: of the image's diagonal, as in Boundary IoU (Cheng et al., CVPR 2021). Ignored pixels
    count as a label of their own.
    """
    width = max(round(share * float(np.hypot(*label.shape))), 1)
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return cv2.dilate(label, square) != cv2.erode(label, square), width


def count(runs: list[Run], pairs: list[Pair], border: float) -> Counts:
    """Raises UserError where maps do not give the mIoU in metrics.json; border: see near_border."""
    classes, names = runs[0].data.classes, output_names([pair.image for pair in pairs])
    pixels = np.zeros((len(runs), len(pairs), 2, 3, classes), np.int64)
    corrected = np.zeros((len(pairs), len(runs), len(runs)), np.int64)
    valid, widths = np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.int64)
    for i, pair in enumerate(tqdm(pairs, "compare", leave=False, disable=None)):
        _, label, maps = read_scene(runs, pair, names[i])
        near, widths[i] = near_border(label, border)
        for r, prediction in enumerate(maps):
            for region, mask in ((BORDER, near), (INSIDE, ~near)):
                part = torch.from_numpy(np.where(mask, label, 255))
                matrix = confusion_matrix(torch.from_numpy(prediction.copy()), part, classes).numpy()
                pixels[r, i, region] = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        right = [prediction == label for prediction in maps]
        valid[i] = (label < classes).sum()
        corrected[i] = [[(~a & b).sum() for b in right] for a in right]
    for run, own in zip(runs, pixels.sum((1, 2)), strict=True):
        if abs(iou(*own).mean() - run.metrics["mIoU"]) > 1e-6:
            raise UserError(f"maps in {run.folder}/result/gray are not those its metrics.json scored; test it again")
    return Counts(pixels, corrected, valid, widths)
