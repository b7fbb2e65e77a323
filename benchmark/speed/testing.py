"""Images a second of testing, from JPEG to class map: PSPNet18, sliding windows, flip.

    python benchmark/speed/testing.py [--images 8] [--height 375] [--width 500] [--crop 473]
                                      [--repeats 3] [--workers 1] [--json FILE]

test_18.py's own work with TEST.precision auto (ours) and fp32, in alternation. It includes reading
the checkpoint: take more images on a GPU.
"""

import contextlib
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.speed import measure, step_variants
from model.pspnet import PSPNet
from util.evaluate import testing
from util.run import errors_in_one_line

WAYS, CLASSES = {"ours": "auto", "fp32": "fp32"}, 21


def make_images(folder: Path, count: int, height: int, width: int) -> None:
    """`count` JPEGs of noise, labels of one class each, and list.txt."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = cv2.resize(rng.normal(116, 60, (64, 64, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i}.jpg"), np.clip(image, 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / f"{i}.png"), np.full((height, width), i % CLASSES, np.uint8))
    (folder / "list.txt").write_text("".join(f"{i}.jpg {i}.png\n" for i in range(count)))


def test(options: Namespace, folder: Path, precision: str) -> measure.Work:
    keys = {"DATA.data_root": folder, "TEST.test_list": folder / "list.txt", "TEST.model_path": folder / "model.pth"}
    keys |= {"TEST.test_h": options.crop, "TEST.test_w": options.crop, "TRAIN.workers": options.workers}
    keys |= {"TEST.precision": precision, "TEST.base_size": options.base_size, "TEST.save_folder": folder / precision}
    cfg = step_variants.load("18", keys)

    def work() -> None:
        with contextlib.redirect_stdout(None):
            testing.test(cfg)

    return work


def main() -> None:
    parser = measure.parser(__doc__, images=8, height=375, width=500, crop=473, base_size=512, repeats=3, workers=1)
    options = parser.parse_args()
    with errors_in_one_line(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, options.images, options.height, options.width)
        torch.save({"state_dict": PSPNet(18, CLASSES, aux=False).state_dict()}, folder / "model.pth")
        ways = {way: test(options, folder, precision) for way, precision in WAYS.items()}
        rows = measure.summary(measure.time_alternately(ways, options.repeats), "ours")
        for row in rows.values():
            row["images_a_second"] = options.images / row["seconds"]
        measure.report(options, {"ways": rows})


if __name__ == "__main__":
    main()
