"""Segment pictures of your own with any checkpoint: class maps, colours, and an overlay with a legend.

    python tool/demo.py --config FILE IMAGE|FOLDER|VIDEO|CAMERA|- ... [--out FOLDER] [SECTION.key VALUE ...]

TEST.model_path names the checkpoint. Pictures are predicted as in testing (TEST.*), into gray/NAME.png (class indices),
color/NAME.png and overlay/NAME.jpg. Videos, cameras (a number) and - (JPEG pictures on stdin) are predicted whole and
without flip, for speed, into NAME.mp4: every frame, but of a camera, and of - with --live, only the newest.
With --out - the overlays go to stdout as JPEG pictures, which a player shows:

    ffmpeg -i VIDEO -f image2pipe -c:v mjpeg - | python tool/demo.py --config FILE --out - - | ffplay -f mjpeg -
"""

import argparse
import re
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tool import frames  # noqa: E402
from tool.report.picture import legend  # noqa: E402
from util import (  # noqa: E402
    config,
    distributed,
    network,  # noqa: E402
    run,
)
from util.data.decode import read_image  # noqa: E402
from util.data.lists import Pair, read_colors, read_names  # noqa: E402
from util.errors import UserError  # noqa: E402
from util.evaluate import predict  # noqa: E402
from util.evaluate.testing import output_names, write_maps  # noqa: E402

OPACITY = 0.5  # of the colours over the picture
SMALLEST = 480  # width of an overlay in pixels; smaller pictures are enlarged, or the legend would dwarf them


class Segmenter:
    """A checkpoint that turns pictures into class maps and overlays."""

    def __init__(self, cfg: config.Config):
        self.cfg, self.names, self.palette = cfg, read_names(cfg.data), read_colors(cfg.data)
        net = network.load(cfg.test.model_path, cfg.train.layers, cfg.data.classes, aux=False)
        self.dtype = distributed.precision(cfg.test.precision)
        self.net = net.to(distributed.device()).freeze(self.dtype)

    def predictor(self, quick: bool) -> predict.Predictor:
        protocol = predict.validation_protocol(self.cfg) if quick else predict.testing_protocol(self.cfg)
        return predict.Predictor(self.net, self.cfg, protocol, self.dtype)

    def overlay(self, image: NDArray[np.uint8], labels: NDArray[np.uint8], present_only: bool) -> NDArray[np.uint8]:
        """image (H, W, 3) under the colours of labels (H, W), above a legend: of all classes, or of those there."""
        factor = max(-(-SMALLEST // image.shape[1]), 1)
        size = (image.shape[1] * factor, image.shape[0] * factor)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        colors = cv2.resize(self.palette[labels], size, interpolation=cv2.INTER_NEAREST)
        mixed = cv2.addWeighted(image, 1 - OPACITY, colors, OPACITY, 0)
        there = np.argsort(-np.bincount(labels.ravel(), minlength=len(self.names)), kind="stable")
        listed = there[: len(np.unique(labels))] if present_only else range(len(self.names))
        return np.concatenate([mixed, legend([(self.names[i], self.palette[i].tolist()) for i in listed], size[0])])


def label_picture(predictor: predict.Predictor, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB -> (H, W) class indices."""
    p = predictor.protocol
    scaled = [torch.from_numpy(predict.resize(image.astype(np.float32), scale, p.base_size)) for scale in p.scales]
    return predictor(scaled, image.shape[:2]).argmax(0).to(torch.uint8).cpu().numpy()


def segment_pictures(segmenter: Segmenter, paths: list[Path], out: Path) -> None:
    """Writes maps and overlays under `out`. Files that are no pictures are named at the end, as one UserError."""
    predictor, bad = segmenter.predictor(quick=False), []
    for path, name in zip(paths, output_names([Pair(path, None) for path in paths], out), strict=True):
        try:
            image = read_image(path)
        except UserError:
            bad.append(str(path))
            continue
        labels = label_picture(predictor, image)
        write_maps(labels, segmenter.palette, out, name)
        overlay = cv2.cvtColor(segmenter.overlay(image, labels, present_only=True), cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(out / "overlay" / f"{name}.jpg"), overlay, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise UserError(f"cannot write {out}/overlay/{name}.jpg")
        shares = np.bincount(labels.ravel(), minlength=len(segmenter.names)) / labels.size
        shown = ", ".join(f"{segmenter.names[i]} {100 * shares[i]:.0f} %" for i in np.argsort(-shares)[:4] if shares[i])
        print(f"{path}: {shown} -> {out}/overlay/{name}.jpg", flush=True)
    if bad:
        raise UserError(f"cannot be decoded as a picture, {len(bad)} of {len(paths)}: {', '.join(bad[:5])}")


def segment_stream(segmenter: Segmenter, stream: frames.Stream, sink: frames.VideoFile | frames.Pipe) -> None:
    """Overlay every frame, or those there is time for; says on stderr how many a second. Ctrl-C ends it well."""
    predictor, done, seen, start = segmenter.predictor(quick=True), 0, 0, time.perf_counter()
    try:
        for frame, count in frames.ahead(stream.frames, stream.live):
            sink.write(segmenter.overlay(frame, label_picture(predictor, frame), present_only=False), count)
            done, seen = done + 1, seen + count
    except KeyboardInterrupt:
        pass
    finally:
        sink.close()
    rate = done / (time.perf_counter() - start)
    dropped = f", {seen - done} dropped" if seen > done else ""
    print(f"{stream.name}: {done} frames{dropped}, {rate:.1f} a second (the source: {stream.rate:g}) -> {sink.path}",
          file=sys.stderr)  # fmt: skip


def main() -> None:
    parser = run.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", default="config/voc2012/voc2012_pspnet50_18.yaml", help="default: %(default)s")
    parser.add_argument("--out", help="folder (default: demo beside TEST.save_folder), or - for stdout")
    parser.add_argument("--live", action="store_true", help="with -: drop frames that there is no time for")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder, video, camera number, or -")
    with run.errors_in_one_line():
        arguments = parser.parse_intermixed_args()
        words = arguments.inputs
        first = next(
            (i for i, word in enumerate(words) if re.match(r"(DATA|TRAIN|DISTILL|TEST)\.\w", word)), len(words)
        )
        cfg = config.load(arguments.config, words[first:])
        if not first:
            raise UserError("name a picture, a folder, a video, a camera's number, or - for stdin; see --help")
        found = {source: frames.pictures(source) for source in words[:first]}
        streams = [frames.open_stream(source, arguments.live) for source, paths in found.items() if paths is None]
        paths = [path for listed in found.values() for path in listed or []]
        piped = arguments.out == "-"
        if piped and (paths or len(streams) != 1):
            raise UserError("--out - takes one video, camera or stdin, and no pictures")
        out = Path(cfg.test.save_folder).parent / "demo" if arguments.out in (None, "-") else Path(arguments.out)
        segmenter = Segmenter(cfg)
        try:
            for folder in [out] * bool(streams and not piped) + [
                out / kind for kind in ("gray", "color", "overlay") if paths
            ]:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {out} (--out): {error.strerror}") from None
        for stream in streams:
            sink = frames.Pipe() if piped else frames.VideoFile(out / f"{stream.name}.mp4", stream.rate)
            segment_stream(segmenter, stream, sink)
        if paths:
            segment_pictures(segmenter, paths, out)


if __name__ == "__main__":
    main()
