"""Segment your own pictures and videos with any checkpoint: class maps, colours, overlays.

    python tool/demo.py --config FILE IMAGE|FOLDER|VIDEO|CAMERA ... [--out FOLDER] [SECTION.key VALUE ...]

TEST.model_path names the checkpoint. Pictures are predicted as in testing (TEST.*) and give
gray/NAME.png (class indices), color/NAME.png and overlay/NAME.jpg. Frames of a video, or of a
camera (given by its number), are predicted whole and without flip, for speed, and give NAME.mp4.
Ctrl-C ends a video and keeps what was written.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tool.report.picture import legend
from util import config, run
from util.data.decode import read_image
from util.data.lists import read_colors, read_names
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.outputs import check_outputs, output_names
from util.evaluate.protocol import protocol_for_validation, resize
from util.evaluate.testing import map_paths, predictor_of, write_maps

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
DEFAULT_RATE = 25.0  # frames a second, where the source gives none
OPACITY = 0.5  # of the colours over the picture
MIN_WIDTH = 480  # of an overlay, in pixels: smaller pictures are enlarged to have room for the legend
INPUTS = "a picture, a folder, a video or a camera's number"


class Stream(NamedTuple):
    name: str
    frames: Iterator[NDArray[np.uint8]]  # (H, W, 3) RGB
    rate: float  # frames a second


def find_pictures(source: str) -> list[Path] | None:
    """The picture file `source`, or those of the folder `source`; None for a video or camera.

    Raises UserError for a path that does not exist and for a folder without pictures.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        found = [file for file in files if _is_picture(file)]
        if len(found) < len(files):
            print(f"{path}: {len(files) - len(found)} of {len(files)} files are no pictures and are left out")
        if not found:
            raise UserError(f"folder {path} holds no picture ({', '.join(sorted(SUFFIXES))})")
        return found
    if path.is_file():
        return [path] if _is_picture(path) else None
    if source.isdigit():
        return None
    raise UserError(f"{source} does not exist; name {INPUTS}")


def _is_picture(path: Path) -> bool:
    not_utf8 = any("\ud800" <= char <= "\udfff" for char in str(path))  # OpenCV crashes on such a name
    return path.suffix.lower() in SUFFIXES or not_utf8 or cv2.haveImageReader(str(path))


def open_stream(source: str) -> Stream:
    """A video file, or a camera by its number. Raises UserError if it gives no frame."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # the error below replaces OpenCV's messages
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    camera = not Path(source).exists()
    capture = cv2.VideoCapture(int(source) if camera else source)
    good, first = capture.read()
    if not good:
        problem = f"camera {source} cannot be opened" if camera else f"{source} cannot be read as a picture or video"
        raise UserError(f"{problem}; name {INPUTS}")
    rate = capture.get(cv2.CAP_PROP_FPS)
    name = f"camera{source}" if camera else source
    return Stream(name, _frames(capture, first), rate if 0 < rate < 1000 else DEFAULT_RATE)


def _frames(capture: cv2.VideoCapture, frame: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    good = True
    while good:
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        good, frame = capture.read()


class Segmenter:
    """A network that turns pictures into class maps and overlays."""

    def __init__(self, cfg: config.Config):
        self.cfg, self.names, self.palette = cfg, read_names(cfg.data), read_colors(cfg.data)
        self.tested = predictor_of(cfg)

    def predictor(self, quick: bool) -> predict.Predictor:
        if not quick:
            return self.tested
        return predict.Predictor(self.tested.net, self.cfg, protocol_for_validation(self.cfg), self.tested.dtype)

    def overlay(self, image: NDArray[np.uint8], labels: NDArray[np.uint8], present_only: bool) -> NDArray[np.uint8]:
        """image (H, W, 3) blended with the colours of labels (H, W), above a legend.

        The legend lists all classes, or with present_only those in labels, the largest first.
        """
        factor = max(-(-MIN_WIDTH // image.shape[1]), 1)
        size = (image.shape[1] * factor, image.shape[0] * factor)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        colors = cv2.resize(self.palette[labels], size, interpolation=cv2.INTER_NEAREST)
        blended = cv2.addWeighted(image, 1 - OPACITY, colors, OPACITY, 0)
        by_area = np.argsort(-np.bincount(labels.ravel(), minlength=len(self.names)), kind="stable")
        listed = by_area[: len(np.unique(labels))] if present_only else range(len(self.names))
        return np.concatenate([blended, legend([(self.names[i], self.palette[i].tolist()) for i in listed], size[0])])


def label_picture(predictor: predict.Predictor, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB -> (H, W) class indices."""
    p = predictor.protocol
    scaled = [torch.from_numpy(resize(image.astype(np.float32), scale, p.base_size)) for scale in p.scales]
    return predictor.labels(scaled, image.shape[:2]).cpu().numpy()


def segment_pictures(segmenter: Segmenter, paths: list[Path], out: Path) -> None:
    """Write maps and overlays under `out`; at the end, one UserError names undecodable files."""
    predictor, bad = segmenter.predictor(quick=False), []
    for path, name in zip(paths, output_names(paths), strict=True):
        try:
            image = read_image(path, segmenter.cfg.data.image_max)
        except UserError as error:
            bad.append(str(error))
            continue
        labels = label_picture(predictor, image)
        write_maps(labels, segmenter.palette, out, name)
        overlay = cv2.cvtColor(segmenter.overlay(image, labels, present_only=True), cv2.COLOR_RGB2BGR)
        file = out / "overlay" / f"{name}.jpg"
        done, jpeg = cv2.imencode(".jpg", overlay, [cv2.IMWRITE_JPEG_QUALITY, 92])  # imwrite crashes on some names
        if not done:
            raise UserError(f"cannot write {file}: {overlay.shape[1]}x{overlay.shape[0]} is no size for a JPEG")
        try:
            file.write_bytes(jpeg)
        except OSError as error:
            raise UserError(f"cannot write {file} ({error.strerror})") from None
        shares = np.bincount(labels.ravel(), minlength=len(segmenter.names)) / labels.size
        largest = [f"{segmenter.names[i]} {100 * shares[i]:.0f} %" for i in np.argsort(-shares)[:4] if shares[i]]
        print(f"{path}: {', '.join(largest)} -> {file}", flush=True)
    if bad:
        raise UserError(f"{len(bad)} of {len(paths)} pictures were left out: {'; '.join(bad[:5])}")


def segment_video(segmenter: Segmenter, stream: Stream, path: Path) -> None:
    """Write the overlays of all frames to the MP4 file `path`, and the speed to stderr."""
    predictor, writer, size, done, start = segmenter.predictor(quick=True), None, (0, 0), 0, time.perf_counter()
    try:
        for frame in stream.frames:
            overlay = segmenter.overlay(frame, label_picture(predictor, frame), present_only=False)
            if writer is None:
                size = overlay.shape[1] // 2 * 2, overlay.shape[0] // 2 * 2  # the codec needs even sides
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), stream.rate, size)
                if not writer.isOpened():
                    raise UserError(f"cannot write the video {path}")
            writer.write(cv2.cvtColor(cv2.resize(overlay, size), cv2.COLOR_RGB2BGR))
            done += 1
    except KeyboardInterrupt:
        pass
    finally:
        if writer:
            writer.release()
    rate = done / (time.perf_counter() - start)
    print(f"{stream.name}: {done} frames, {rate:.1f} a second (source: {stream.rate:g}) -> {path}", file=sys.stderr)


def main() -> None:
    parser = run.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", default="config/voc2012/voc2012_pspnet50_18.yaml", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder (default: demo beside TEST.save_folder)")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=f"{INPUTS}; then SECTION.key VALUE pairs")
    with run.errors_in_one_line():
        arguments = parser.parse_intermixed_args()
        words = arguments.inputs
        keys = [i for i, word in enumerate(words) if re.match(r"(DATA|TRAIN|DISTILL|TEST)\.\w", word)]
        sources, overrides = (words[: keys[0]], words[keys[0] :]) if keys else (words, [])
        cfg = config.load(arguments.config, overrides)
        if not sources:
            raise UserError(f"name {INPUTS}; see --help")
        found = {source: find_pictures(source) for source in sources}
        streams = [open_stream(source) for source, paths in found.items() if paths is None]
        pictures = list(dict.fromkeys(path for paths in found.values() for path in paths or []))
        out = arguments.out or Path(cfg.test.save_folder).parent / "demo"
        videos = [out / f"{name}.mp4" for name in output_names([Path(stream.name) for stream in streams])]
        names = output_names(pictures)
        maps = [*map_paths(out, names), *(out / "overlay" / f"{name}.jpg" for name in names)]
        inputs = [*sources, *pictures, cfg.test.model_path, cfg.data.names_path, cfg.data.colors_path]
        check_outputs([*videos, *maps], inputs)
        segmenter = Segmenter(cfg)
        try:
            for folder in (out, *(out / kind for kind in ("gray", "color", "overlay") if pictures)):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {out} (--out): {error.strerror}") from None
        for stream, path in zip(streams, videos, strict=True):
            segment_video(segmenter, stream, path)
        if pictures:
            segment_pictures(segmenter, pictures, out)


if __name__ == "__main__":
    main()
