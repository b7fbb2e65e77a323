"""Prediction of whole images, by sliding windows or at once, as in semseg; validation."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.upsample import BilinearUpsampler
from util import distributed
from util.config import Config
from util.data.batch import Normalize
from util.data.lists import Pair
from util.data.loader import build_loader, progress
from util.data.transform import mirrored_classes
from util.errors import UserError
from util.evaluate.metric import confusion_matrix
from util.evaluate.protocol import Protocol, ScaledImages, protocol_for_validation
from util.stop import SYNC_EVERY

LARGEST = 1 << 27  # numbers of scores at full size that exist at a time
STRIDE_RATE = 2 / 3  # of the crop, between neighbouring windows


def _window_starts(size: int, crop: int) -> list[int]:
    """Where windows begin along one side: every ceil(2/3 crop), the last one flush with the end."""
    stride = math.ceil(crop * STRIDE_RATE)
    return [min(i * stride, size - crop) for i in range(math.ceil((size - crop) / stride) + 1)]


class Window(NamedTuple):
    """A window's corner (y, x) in the image, and the image's rows and columns that it covers."""

    y: int
    x: int
    rows: slice
    columns: slice


class Predictor:
    """Class probabilities and labels of whole images by `net`, which is set to eval mode."""

    def __init__(self, net: nn.Module, cfg: Config, protocol: Protocol, dtype: torch.dtype):
        self.net, self.protocol, self.dtype = net.eval(), protocol, dtype
        self.data, self.ignore_label = cfg.data, cfg.train.ignore_label
        self.mirrored_classes = mirrored_classes(cfg.data)
        self.device = distributed.device()
        self.normalize = Normalize(cfg.data, self.device)

    @torch.inference_mode()
    def labels(self, scaled: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The image at each scale, (h, w, 3) -> class indices (*size), uint8 on the device.

        The argmax of __call__, some classes at a time: 150 of them at 24 megapixels are 14 GB.
        """
        at_scales = [self._probabilities(image) for image in scaled]
        best, labels = None, None
        step = max(LARGEST // (size[0] * size[1]), 1)
        for first in range(0, at_scales[0].shape[1], step):
            # max, not argmax, which is three times slower on a CPU
            value, index = self._resized([p[:, first : first + step] for p in at_scales], size).max(0)
            if best is None:
                best, labels = value, index.to(torch.uint8)
            else:
                labels = torch.where(value > best, (index + first).to(torch.uint8), labels)
                best = torch.maximum(value, best)
        return labels

    @torch.inference_mode()
    def __call__(self, scaled: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The image at each scale, (h, w, 3) -> (classes, *size): the mean over scales of softmax outputs."""
        return self._resized([self._probabilities(image) for image in scaled], size)

    def _probabilities(self, image: Tensor) -> Tensor:
        """(h, w, 3) -> (1, classes, h, w): the mean over windows and flips of softmax outputs."""
        total, count = self._windows(self.normalize(image[None]))
        return total.div_(count)

    @staticmethod
    def _resized(at_scales: list[Tensor], size: tuple[int, int]) -> Tensor:
        # cv2.resize's INTER_LINEAR: half-pixel centres, no anti-aliasing
        total = sum(F.interpolate(p, size, mode="bilinear", align_corners=False) for p in at_scales)
        return total[0] / len(at_scales)

    def _windows(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, h, w) -> summed softmax (1, classes, h, w), number of summands (1, 1, h, w)."""
        size = height, width = image.shape[2:]
        crop = size if self.protocol.mode == "whole" else self.protocol.crop
        pad_h, pad_w = max(crop[0] - height, 0), max(crop[1] - width, 0)
        top, left = pad_h // 2, pad_w // 2
        image = F.pad(image, (left, pad_w - left, top, pad_h - top))  # after normalising, the mean is 0
        windows = [
            Window(y - top, x - left, _overlap(y - top, crop[0], height), _overlap(x - left, crop[1], width))
            for y in _window_starts(image.shape[2], crop[0])
            for x in _window_starts(image.shape[3], crop[1])
        ]
        total, count = None, image.new_zeros(1, 1, *size)
        chunk = max(self.protocol.batch_size // (2 if self.protocol.flip else 1), 1)
        for first in range(0, len(windows), chunk):
            part = windows[first : first + chunk]
            corners = [(w.y + top, w.x + left) for w in part]
            views = self._logits(torch.cat([image[:, :, y : y + crop[0], x : x + crop[1]] for y, x in corners]))
            if total is None:
                total = image.new_zeros(1, views[0].shape[1], *size)
            for window, *logits in zip(part, *views, strict=True):
                for one in logits:
                    _add_softmax(total, one[None], crop, window)
                count[:, :, window.rows, window.columns] += len(logits)
        return total, count

    def _logits(self, windows: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, h, w) -> logits (N, classes, h/8, w/8); if flip, of the mirrored windows, too.

        Those are mirrored back at stride 8: upsampling by align_corners is the same both ways.
        """
        batch = torch.cat([windows, windows.flip(3)]) if self.protocol.flip else windows
        with distributed.autocast(self.dtype):
            logits = self.net(batch.to(self.dtype, memory_format=torch.channels_last)).logits.float()
        if not self.protocol.flip:
            return (logits,)
        plain, mirrored = logits.chunk(2)
        return plain, mirrored[:, self.mirrored_classes].flip(3)


def _overlap(start: int, crop: int, size: int) -> slice:
    """The part of an image's `size` pixels that a window from `start` covers."""
    return slice(max(start, 0), min(start + crop, size))


def _add_softmax(total: Tensor, logits: Tensor, crop: tuple[int, int], window: Window) -> None:
    """Add the softmax of a window's logits, upsampled to `crop`, to `total` (1, classes, H, W).

    What the window shows of its padding is never computed.
    """
    y, x, rows, columns = window
    upsampler = BilinearUpsampler(logits, crop, slice(columns.start - x, columns.stop - x))
    for block in upsampler.blocks(rows.start - y, rows.stop - y):
        total[:, :, block.start + y : block.stop + y, columns] += upsampler.rows(block).softmax(1)


Prediction = tuple[int, Tensor, Tensor | None]  # index, (H, W) uint8 on the device, label (H, W) if there is one


def predictions(
    predictor: Predictor, pairs: list[Pair], indices: Sequence[int], workers: int = 0, title: str | None = None
) -> Iterator[Prediction]:
    """Predict `pairs[i]` for each i of `indices`. A title asks for a progress bar."""
    images = ScaledImages(pairs, predictor.protocol, predictor.data, predictor.ignore_label)
    batches = build_loader(images, min(workers, len(indices)), batch_size=None, sampler=indices)
    for item in progress(batches, title) if title else batches:
        if isinstance(item, UserError):
            raise item
        index, size, scaled, label = item
        yield index, predictor.labels(scaled, tuple(size)), label


def validate(
    net: nn.Module,
    pairs: list[Pair],
    cfg: Config,
    dtype: torch.dtype | None = None,
    stop: Callable[[bool], bool] = lambda sync: False,
) -> Tensor | None:
    """The (classes, classes) confusion matrix over all processes; None when told to `stop`.

    dtype: else TRAIN.precision. stop(sync): called after each image; see Interrupt.stop_requested.
    """
    predictor = Predictor(net, cfg, protocol_for_validation(cfg), dtype or distributed.precision(cfg.train.precision))
    matrix = torch.zeros(cfg.data.classes, cfg.data.classes, dtype=torch.int64, device=predictor.device)
    indices = distributed.indices_of_this_rank(len(pairs))
    common = len(pairs) // distributed.world_size()  # images that every process has
    for number, (_, prediction, label) in enumerate(
        predictions(predictor, pairs, indices, cfg.train.workers, "validate"), 1
    ):
        matrix += confusion_matrix(prediction, label.to(prediction.device), cfg.data.classes)
        if stop(number % SYNC_EVERY == 0 and number <= common):
            return None
    return distributed.all_reduce(matrix)
