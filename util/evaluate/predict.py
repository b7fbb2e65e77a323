"""The one testing loop: sliding windows or whole images, as in the semseg family, and validation while training."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from model.upsample import BilinearUpsampler
from util import distributed
from util.config import Config
from util.data.batch import Normalize
from util.data.decode import read_image
from util.data.lists import Pair, read_pair
from util.data.loader import build_loader
from util.errors import UserError
from util.evaluate.metric import confusion_matrix
from util.stop import SYNC_EVERY

STRIDE_RATE = 2 / 3  # of the crop, between neighbouring windows


class Protocol(NamedTuple):
    """How a picture is turned into labels."""

    base_size: int  # the longer side at scale 1, in pixels
    scales: list[float]
    flip: bool  # average with the mirrored picture
    mode: str  # slide: windows of the crop's size; whole: the picture at once
    crop: tuple[int, int]  # height, width of a window
    batch_size: int  # windows a forward pass


def testing_protocol(cfg: Config) -> Protocol:
    t = cfg.test
    return Protocol(t.base_size, t.scales, t.flip, t.mode, (t.test_h, t.test_w), cfg.train.batch_size_val)


def validation_protocol(cfg: Config) -> Protocol:
    """Validation while training: whole pictures at TEST.base_size, without flip."""
    return testing_protocol(cfg)._replace(scales=[1.0], flip=False, mode="whole")


def resize(image: NDArray[np.float32], scale: float, base_size: int) -> NDArray[np.float32]:
    """Make the longer side round(scale * base_size). Sizes round as in semseg: half to even, first the long side."""
    height, width = image.shape[:2]
    long_side = round(scale * base_size)
    new_h = new_w = long_side
    if height > width:
        new_w = round(long_side / float(height) * width)
    else:
        new_h = round(long_side / float(width) * height)
    return cv2.resize(image, (max(new_w, 1), max(new_h, 1)), interpolation=cv2.INTER_LINEAR)


class TestData(Dataset):
    """Each picture at every scale, float32 (resizing rounded values would change labels), and its label."""

    def __init__(self, pairs: list[Pair], cfg: Config, protocol: Protocol):
        self.pairs, self.cfg, self.protocol = pairs, cfg, protocol

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        """-> index, (height, width), one (h, w, 3) tensor a scale, label (height, width) or None."""
        pair, p = self.pairs[index], self.protocol
        try:
            image, label = (
                (read_image(pair.image), None)
                if pair.label is None
                else read_pair(pair, self.cfg.data.classes, self.cfg.train.ignore_label)
            )
        except UserError as error:
            return error
        scaled = [torch.from_numpy(resize(image.astype(np.float32), scale, p.base_size)) for scale in p.scales]
        return index, image.shape[:2], scaled, None if label is None else torch.from_numpy(label.copy())


def _window_starts(size: int, crop: int) -> list[int]:
    """Where windows begin along one side: every ceil(2/3 crop), the last one flush with the end."""
    stride = math.ceil(crop * STRIDE_RATE)
    return [min(i * stride, size - crop) for i in range(math.ceil((size - crop) / stride) + 1)]


class Predictor:
    """Class probabilities of whole pictures by a network in eval mode."""

    def __init__(self, net: nn.Module, cfg: Config, protocol: Protocol, dtype: torch.dtype):
        self.net, self.protocol, self.dtype = net, protocol, dtype
        self.normalize = Normalize(cfg.data, distributed.device())

    @torch.inference_mode()
    def __call__(self, scaled: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The picture at each scale, (h, w, 3) -> (classes, *size): the mean over scales of softmax outputs."""
        total = sum(self._resized(image, size) for image in scaled)
        return total[0] / len(scaled)

    def _resized(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        total, count = self._windows(self.normalize(image[None]))
        # cv2.resize's INTER_LINEAR: half-pixel centres, no anti-aliasing
        return F.interpolate(total.div_(count), size, mode="bilinear", align_corners=False)

    def _windows(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, h, w) -> summed softmax outputs (1, classes, h, w), and how many each pixel has (1, 1, h, w)."""
        size = height, width = image.shape[2:]
        crop = size if self.protocol.mode == "whole" else self.protocol.crop
        pad_h, pad_w = max(crop[0] - height, 0), max(crop[1] - width, 0)
        top, left = pad_h // 2, pad_w // 2
        image = F.pad(image, (left, pad_w - left, top, pad_h - top))  # after normalising, the mean is 0
        corners = [
            (y, x) for y in _window_starts(image.shape[2], crop[0]) for x in _window_starts(image.shape[3], crop[1])
        ]
        total, count = None, image.new_zeros(1, 1, *size)
        chunk = max(self.protocol.batch_size // (2 if self.protocol.flip else 1), 1)
        for first in range(0, len(corners), chunk):
            part = corners[first : first + chunk]
            views = self._logits(torch.cat([image[:, :, y : y + crop[0], x : x + crop[1]] for y, x in part]))
            if total is None:
                total = image.new_zeros(1, views[0].shape[1], *size)
            for (y, x), *window in zip(part, *views, strict=True):
                rows, columns = _overlap(y - top, crop[0], height), _overlap(x - left, crop[1], width)
                for logits in window:
                    _add_softmax(total[..., columns], logits[None], crop, y - top, rows, x - left, columns)
                count[:, :, rows, columns] += len(window)
        return total, count

    def _logits(self, windows: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, h, w) -> logits (N, classes, h/8, w/8), and, if flip, those of the mirrored windows turned back.

        They are turned back at stride 8: enlarging with align_corners is the same from both ends.
        """
        batch = torch.cat([windows, windows.flip(3)]) if self.protocol.flip else windows
        with distributed.autocast(self.dtype):
            logits = self.net(batch.to(self.dtype, memory_format=torch.channels_last)).logits.float()
        if not self.protocol.flip:
            return (logits,)
        there, mirrored = logits.chunk(2)
        return there, mirrored.flip(3)


def _overlap(start: int, crop: int, size: int) -> slice:
    """The part of a picture's `size` pixels that a window from `start` covers."""
    return slice(max(start, 0), min(start + crop, size))


def _add_softmax(
    total: Tensor, logits: Tensor, crop: tuple[int, int], y: int, rows: slice, x: int, columns: slice
) -> None:
    """Add the softmax of a window, enlarged to `crop` and lying at (y, x) of the picture, to `total`'s `rows`.

    total: (1, classes, h, columns). What the window shows of its padding is never computed.
    """
    seen = BilinearUpsampler(logits, crop, slice(columns.start - x, columns.stop - x))
    for block in seen.blocks(rows.start - y, rows.stop - y):
        total[:, :, block.start + y : block.stop + y] += seen.rows(block).softmax(1)


Prediction = tuple[int, Tensor, Tensor | None]  # index, (H, W) uint8 on the device, label (H, W) if there is one


def predictions(
    net: nn.Module,
    pairs: list[Pair],
    indices: Sequence[int],
    cfg: Config,
    protocol: Protocol,
    dtype: torch.dtype,
    workers: int = 0,
    title: str | None = None,
) -> Iterator[Prediction]:
    """Predict `pairs[i]` for each i of `indices`; `net` is set to eval mode. A title asks for a progress bar."""
    net.eval()
    predict = Predictor(net, cfg, protocol, dtype)
    batches = build_loader(TestData(pairs, cfg, protocol), workers, batch_size=None, sampler=indices)
    for item in tqdm(batches, title, leave=False, disable=None if title and distributed.is_main() else True):
        if isinstance(item, UserError):
            raise item
        index, size, scaled, label = item
        yield index, predict(scaled, tuple(size)).max(0).indices.to(torch.uint8), label  # argmax is 3x slower on a CPU


def share(count: int) -> range:
    """This process's part of `count` images: of n processes the r-th takes every n-th, so none counts twice."""
    return range(distributed.rank(), count, distributed.world_size())


def validate(
    net: nn.Module,
    pairs: list[Pair],
    cfg: Config,
    dtype: torch.dtype | None = None,
    stop: Callable[[bool], bool] = lambda sync: False,
) -> Tensor | None:
    """The confusion matrix of quick validation over all processes, (classes, classes); None when told to `stop`.

    dtype: else TRAIN.precision. stop(sync): asked after each image; see Interrupt.stop_requested.
    """
    classes, train = cfg.data.classes, cfg.train
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=distributed.device())
    mine = share(len(pairs))
    common = len(pairs) // distributed.world_size()  # images that every process has
    dtype, workers = dtype or distributed.precision(train.precision), min(train.workers, len(mine))
    found = predictions(net, pairs, mine, cfg, validation_protocol(cfg), dtype, workers, "validate")
    for number, (_, prediction, label) in enumerate(found, 1):
        matrix += confusion_matrix(prediction, label.to(prediction.device), classes)
        if stop(number % SYNC_EVERY == 0 and number <= common):
            return None
    return all_reduce(matrix)


def all_reduce(tensor: Tensor, least: bool = False) -> Tensor:
    """The sum of the processes' tensors, or the least of them, in place."""
    if distributed.world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN if least else dist.ReduceOp.SUM)
    return tensor
