"""The test scripts: predict a list of images, write the class maps, score them, compare runs."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.distill.classes import output_dtype
from util import distributed, network
from util.config import Config
from util.data.decode import read_label
from util.data.label_map import check_labels, warn_of_sides
from util.data.lists import Pair, read_colors, read_names, read_pair, scored_list
from util.data.loader import progress
from util.data.scan import scan_images
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.metric import Scores, confusion_matrix
from util.evaluate.outputs import check_outputs, output_names
from util.evaluate.protocol import protocol_for_testing
from util.files import BackgroundWriter, check_writable, replace_text
from util.teachers import load


def test(cfg: Config) -> None:
    """Predict TEST.test_list, or take the maps that are there (TEST.has_prediction), and score.

    Writes gray/NAME.png (class indices), color/NAME.png (palette) and, unless TEST.split is test,
    metrics.json under TEST.save_folder. TEST.index_start and index_step choose a part of the list.
    """
    t = cfg.test
    if t.has_prediction and t.split == "test":
        raise UserError(
            "TEST.has_prediction scores existing maps, but TEST.split test has no labels; set TEST.split to val"
        )
    pairs = scored_list(t.test_list, "TEST.test_list", cfg.data, labelled=t.split != "test")
    maps = output_names([pair.image for pair in pairs])  # of the whole list: parts must not name theirs otherwise
    part = slice(t.index_start, t.index_start + t.index_step if t.index_step else None)
    pairs, maps = pairs[part], maps[part]
    if not pairs:
        raise UserError(f"TEST.index_start {t.index_start} is past the end of {t.test_list}; lower it")
    names, colors = read_names(cfg.data), read_colors(cfg.data)
    if distributed.is_main() and t.split != "test" and cfg.data.label_map is None:
        check_labels([pair.label for pair in pairs], names, colors, cfg.train.ignore_label)
    if t.flip and not t.has_prediction and distributed.is_main():
        warn_of_sides(names, cfg.data, "TEST.flip to False")
    inputs = [*(path for pair in pairs for path in pair), t.model_path, t.test_list, cfg.data.names_path]
    outputs = [] if t.has_prediction else map_paths(Path(t.save_folder), maps)
    check_outputs([*outputs, Path(t.save_folder, "metrics.json")], [*inputs, cfg.data.colors_path])
    if cfg.check:
        check_only(cfg, pairs, maps)
        return
    matrix = _score_existing(pairs, maps, cfg) if t.has_prediction else _predict(pairs, maps, cfg)
    if t.split == "test" or not distributed.is_main():
        return
    metrics, path = report(matrix, names, cfg, len(pairs)), Path(t.save_folder, "metrics.json")
    with _writing(Path(t.save_folder)):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(metrics, indent=1) + "\n")
    tested = "" if t.teacher else f"PSPNet-{cfg.train.architecture}, "
    print(f"{table(metrics)}\n{tested}{protocol_line(metrics['protocol'])}\nwritten to {path}")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {folder} (TEST.save_folder): {error.strerror}") from None


def map_paths(folder: Path, names: list[str]) -> list[Path]:
    """The files that `write_maps` writes."""
    return [folder / kind / f"{name}.png" for kind in ("gray", "color") for name in names]


def predictor_of(cfg: Config) -> predict.Predictor:
    """The network of TEST.model_path, or DISTILL's teacher (TEST.teacher), frozen, under TEST's protocol."""
    distributed.allow_tf32(cfg.test.precision)
    if cfg.test.teacher:
        distill = cfg.distill.model_copy(update={"precision": cfg.test.precision})
        net = load.load(cfg.model_copy(update={"distill": distill}))
        if "logits" not in net.channels():
            raise UserError(f"TEST.teacher: {cfg.distill.teacher_path} (DISTILL.teacher_path) gives no class scores")
        return predict.Predictor(net, cfg, protocol_for_testing(cfg), output_dtype(net))
    dtype = distributed.precision(cfg.test.precision)
    net = network.load(cfg.test.model_path, cfg.train.architecture, cfg.data.classes, aux=False, data=cfg.data)
    return predict.Predictor(net.to(distributed.device()).freeze(dtype), cfg, protocol_for_testing(cfg), dtype)


def _predict(pairs: list[Pair], names: list[str], cfg: Config) -> torch.Tensor:
    """Write each image's maps -> the confusion matrix over all processes, zero without labels."""
    predictor, folder, palette = predictor_of(cfg), Path(cfg.test.save_folder), read_colors(cfg.data)
    with _writing(folder):
        for kind in ("gray", "color"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
    matrix = torch.zeros(cfg.data.classes, cfg.data.classes, dtype=torch.int64, device=predictor.device)
    indices, title = distributed.indices_of_this_rank(len(pairs)), f"test {len(pairs)} images"
    writer = BackgroundWriter()
    for index, prediction, label in predict.predictions(predictor, pairs, indices, cfg.train.workers, title):
        if label is not None:
            matrix += confusion_matrix(prediction, label.to(predictor.device), cfg.data.classes)
        writer.submit(write_maps, prediction.cpu().numpy(), palette, folder, names[index])
    writer.flush()
    return distributed.all_reduce(matrix)


def check_only(cfg: Config, pairs: list[Pair], names: list[str]) -> None:
    """--check: read every image, predict one, write nothing. Raises UserError as `test` would."""
    t = cfg.test
    scan_images(pairs, cfg, t.test_list)
    if t.has_prediction:
        missing = [name for name in names if not Path(t.save_folder, "gray", f"{name}.png").is_file()]
        if missing:
            raise UserError(f"{t.save_folder}/gray lacks {len(missing)} of {len(names)} maps, such as {missing[0]}.png")
        print(f"it would score the {len(names)} maps in {t.save_folder}/gray")
        return
    check_writable(Path(t.save_folder), "TEST.save_folder")
    next(predict.predictions(predictor_of(cfg), pairs, [0]))
    if distributed.is_main():
        print(f"it would write maps of {len(pairs)} images to {t.save_folder}; nothing was written")


def write_maps(gray: NDArray[np.uint8], palette: NDArray[np.uint8], folder: Path, name: str) -> None:
    """gray (H, W) -> folder/gray/NAME.png, and folder/color/NAME.png with the palette (256, 3)."""
    with _writing(folder):
        Image.fromarray(gray).save(folder / "gray" / f"{name}.png")
        color = Image.fromarray(gray, "P")
        color.putpalette(palette.tobytes())
        color.save(folder / "color" / f"{name}.png")


def _score_existing(pairs: list[Pair], names: list[str], cfg: Config) -> torch.Tensor:
    classes, folder = cfg.data.classes, Path(cfg.test.save_folder, "gray")
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for index in progress(distributed.indices_of_this_rank(len(pairs)), "score"):
        _, label = read_pair(pairs[index], cfg.data, cfg.train.ignore_label)
        prediction = read_map(folder, names[index], label.shape, classes)
        matrix += confusion_matrix(torch.tensor(prediction), torch.tensor(label), classes)
    return distributed.all_reduce(matrix.to(distributed.device()))


def read_map(folder: Path, name: str, shape: tuple[int, int], classes: int) -> NDArray[np.uint8]:
    """The class indices (H, W) in folder/NAME.png. Raises UserError for what is no such map."""
    path = folder / f"{name}.png"
    if not path.is_file():
        raise UserError(f"{path} does not exist; test that network first, without TEST.has_prediction")
    return read_label(path, shape, classes, classes - 1)


def report(matrix: torch.Tensor, names: list[str], cfg: Config, images: int) -> dict[str, Any]:
    """The content of metrics.json."""
    scores, t, distill = Scores.of(matrix), cfg.test, cfg.distill
    per_class = zip(names, scores.iou, scores.accuracy, strict=True)
    return {
        "mIoU": scores.mIoU,
        "mAcc": scores.mAcc,
        "allAcc": scores.allAcc,
        "classes": [{"name": name, "iou": iou, "accuracy": accuracy} for name, iou, accuracy in per_class],
        "absent": [names[index] for index in scores.absent],
        "images": images,
        "protocol": {
            "mode": t.mode,
            "scales": t.scales,
            "flip": t.flip,
            "crop": [t.test_h, t.test_w],
            "base_size": t.base_size,
            "precision": "existing predictions" if t.has_prediction else str(distributed.precision(t.precision))[6:],
            "checkpoint": f"teacher {', '.join(distill.teachers)}" if t.teacher else t.model_path,
            "list": t.test_list,
            "teacher": t.teacher,
        },
        # What tool/report/compare.py needs to find images, labels and maps again, and to tell
        # teacher from student.
        "data": cfg.data.model_dump(),
        "ignore_label": cfg.train.ignore_label,
        "network": {
            "layers": distill.teacher_architecture if t.teacher else cfg.train.architecture,
            "teacher_layers": distill.teacher_architecture if distill and not t.teacher else None,
        },
    }


def table(metrics: dict[str, Any]) -> str:
    """Per class IoU and accuracy, then the means, in percent."""
    width = max(len(c["name"]) for c in metrics["classes"])
    rows = [f"{'class':{width}}   IoU %   acc %"]
    rows += [f"{c['name']:{width}}  {100 * c['iou']:6.2f}  {100 * c['accuracy']:6.2f}" for c in metrics["classes"]]
    rows.append(f"{'mean':{width}}  {100 * metrics['mIoU']:6.2f}  {100 * metrics['mAcc']:6.2f}")
    rows.append(f"pixel accuracy {100 * metrics['allAcc']:.2f} % over {metrics['images']} images")
    if metrics["absent"]:
        rows.append(f"in neither truth nor prediction, counted as 0: {', '.join(metrics['absent'])}")
    return "\n".join(rows)


def protocol_line(p: dict[str, Any]) -> str:
    how = f"windows of {p['crop'][0]}x{p['crop'][1]}" if p["mode"] == "slide" else "whole images"
    flip = "with" if p["flip"] else "without"
    return f"{how} {flip} flip, scales {p['scales']} of base size {p['base_size']}, {p['precision']}, {p['checkpoint']}"
