"""Images a second of testing by sliding windows: from JPEG to written class map, PSPNet18, one scale, flip.

    python benchmark/testing.py [--images 4] [--height 375] [--width 500] [--crop 473] [--repeats 3] [--workers 1]
                                [--semseg FOLDER] [--json FILE]

Ways take turns. All read the same pictures and write gray/ and color/ maps; building the network is left out.

- ours: test_18.py's own loop, TEST.precision auto
- fp32: the same with TEST.precision fp32
- semseg: --semseg FOLDER, its tool/test.py with an unchanged network in float32, as it is

`same_labels` is the share of pixels where a way's maps and semseg's (without it, fp32's) agree. The network is random,
with strong BatchNorm, so that its labels vary over the picture.
"""

import contextlib
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import measure, pictures, theirs  # noqa: E402
from model import pspnet  # noqa: E402
from util import (  # noqa: E402
    distributed,
)
from util.evaluate import testing  # noqa: E402


class FullSize(nn.Module):
    """A PSPNet that answers as semseg's does: logits at the picture's size."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(self.net(image).logits, image.shape[2:], mode="bilinear", align_corners=True)


def network() -> pspnet.PSPNet:
    """PSPNet18 whose random weights tell places apart."""
    torch.manual_seed(0)
    net = pspnet.PSPNet(18, pictures.CLASSES, aux=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    nn.init.normal_(net.cls[4].weight, 0, 0.5)
    return net.eval()


def ours(options: Namespace, folder: Path, precision: str) -> Callable[[], None]:
    size = [key for name in "hw" for key in (f"TEST.test_{name}", options.crop)]
    cfg = pictures.configuration(
        folder, "pspnet18", "TEST.precision", precision, "TEST.base_size", options.base_size, *size,
        "TRAIN.workers", options.workers, "TEST.save_folder", folder / precision,
    )  # fmt: skip
    net = network.load(cfg.test.model_path, 18, pictures.CLASSES, aux=False).freeze(distributed.precision(precision))
    net.to(distributed.device())
    loaded = mock.Mock(to=lambda _: mock.Mock(freeze=lambda _: net))

    def work() -> None:
        with mock.patch.object(pspnet, "load", lambda *_, **__: loaded), contextlib.redirect_stdout(None):
            testing.test(cfg)

    return work


def agreement(one: Path, other: Path) -> float:
    pairs = [(path, other / path.name) for path in sorted(one.glob("*.png"))]
    equal = [np.asarray(Image.open(a)) == np.asarray(Image.open(b)) for a, b in pairs]
    return float(np.mean(np.concatenate([e.ravel() for e in equal])))


def main() -> None:
    parser = measure.parser(
        __doc__, images=4, height=375, width=500, crop=473, base_size=512, repeats=3, workers=1
    )  # fmt: skip
    parser.add_argument("--semseg", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures.make(folder, options.images, options.height, options.width)
        torch.save({"state_dict": network().state_dict()}, folder / "model.pth")
        ways = {"ours": ours(options, folder, "auto"), "fp32": ours(options, folder, "fp32")}
        if options.semseg:
            cfg = pictures.configuration(
                folder, "pspnet18", "TEST.test_h", options.crop, "TEST.test_w", options.crop,
                "TEST.base_size", options.base_size, "TRAIN.workers", options.workers,
            )  # fmt: skip
            full = FullSize(network()).to(distributed.device())
            ways["semseg"] = theirs.semseg_testing(options.semseg, full, cfg, folder / "semseg")
        results = compare(ways, options, folder)
    measure.report(options, results)


def compare(ways: dict[str, Callable[[], None]], options: Namespace, folder: Path) -> dict:
    floor, gflop = measure.ceiling(distributed.precision("auto"))
    times = measure.turns({k: measure.Variant(v, contextlib.nullcontext) for k, v in ways.items()},
                          options.repeats, floor)  # fmt: skip
    rows, judge = measure.summary(times, "ours"), folder / ("semseg" if options.semseg else "fp32")
    for name, row in rows.items():
        row["images_a_second"] = options.images / row["seconds"]
        row["same_labels"] = agreement(folder / {"ours": "auto"}.get(name, name) / "gray", judge / "gray")
        print(
            f"{name:8}{row['images_a_second']:8.2f} images/s{row['ratio']:7.2f}x ours' time, "
            f"same labels {100 * row['same_labels']:.3f} %"
        )
    found = {len(np.unique(np.asarray(Image.open(p)))) for p in (judge / "gray").glob("*.png")}
    return {"ways": rows, "ceiling": gflop / statistics.median(times["floor"]), "classes_found": sorted(found)}


if __name__ == "__main__":
    measure.main(main)
