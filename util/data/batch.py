"""A batch on the device, as a loss sees it."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from model.labels import Labels, reserved_labels, sample_labels
from torch import Tensor

from util import distributed
from util.config import Data
from util.train.teacher_cache import CachedOutputs


class Batch:
    """What a loss sees: `image` (N, 3, H, W), normalised, and the labels (N, H, W) on any grid.

    A batch may be one of several shares (processes, and forward passes with TRAIN.accumulate) of a whole one;
    see Labels.count. kept: what DISTILL.cache knows of its images.
    """

    def __init__(
        self,
        image: Tensor,
        label: Tensor,
        ignore_label: int,
        mask: str = "labelled",
        whole: Tensor | None = None,
        shares: int = 1,
        kept: CachedOutputs | None = None,
    ):
        self.image, self.label, self.ignore_label, self.mask, self.kept = image, label, ignore_label, mask, kept
        self._whole, self._shares = label if whole is None else whole, shares
        padding, unlabelled = reserved_labels(ignore_label)
        self._excluded = {
            "labels": (ignore_label, padding, unlabelled),
            "valid": (padding,) if mask == "unpadded" else (ignore_label, padding),
        }
        self._cache: dict[tuple[str, int], Labels] = {}

    def labels(self, zoom_factor: int) -> Labels:
        """The labels at (H - 1) * zoom_factor // 8 + 1 points a side: 8 is every pixel, 1 is stride 8."""
        return self._labels("labels", zoom_factor)

    def valid(self, zoom_factor: int) -> Labels:
        """The same grid for terms that need no label: they also count on unlabelled images.

        On labelled images they count where the labels do, or, with DISTILL.mask unpadded, everywhere but on padding.
        """
        return self._labels("valid", zoom_factor)

    def _labels(self, kind: str, zoom_factor: int) -> Labels:
        key = kind, zoom_factor
        if key not in self._cache:
            label = sample_labels(self.label, zoom_factor)
            count = self._included(kind, sample_labels(self._whole, zoom_factor)).sum().float()
            if distributed.world_size() > 1:
                dist.all_reduce(count)
            count = (count / (self._shares * distributed.world_size())).clamp(min=1e-6)
            self._cache[key] = Labels(label, self._included(kind, label), count)
        return self._cache[key]

    def _included(self, kind: str, label: Tensor) -> Tensor:
        return torch.stack([label != value for value in self._excluded[kind]]).all(0)

    def split(self, parts: int) -> Iterator["Batch"]:
        """`parts` batches of equal size, which share this batch's count of valid positions."""
        kept = [None] * parts if self.kept is None else self.kept.split(parts)
        for image, label, known in zip(self.image.chunk(parts), self.label.chunk(parts), kept, strict=True):
            yield Batch(image, label, self.ignore_label, self.mask, self.label, parts, known)


class Normalize:
    """uint8 or float (N, H, W, 3) -> float32 (N, 3, H, W) on the device, minus mean, over std, channels last."""

    def __init__(self, data: Data, device: torch.device):
        self.mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        image = image.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2)
        return (image.float() - self.mean) / self.std
