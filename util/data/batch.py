"""One training batch on the device, with its labels on the output's grids."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.labels import Labels, reserved_labels, sample_labels
from util import distributed
from util.errors import UserError
from util.keys import Data, Train

Key = tuple[int, int]  # epoch, index: of a crop


class CachedOutputs(NamedTuple):
    """A teacher's cached outputs for one crop, or for a batch of them.

    layers: the maps as 16-bit patterns, int16 (C, h, w) or (N, C, h, w); None where one is missing.
    """

    keys: list[Key]
    checksums: list[int]
    layers: dict[str, Tensor] | None

    @classmethod
    def collate(cls, samples: Sequence["CachedOutputs"]) -> "CachedOutputs":
        """One missing crop makes a batch a miss: the teacher's rounding depends on the batch."""
        whole = all(sample.layers is not None for sample in samples)
        names = samples[0].layers if whole else ()
        layers = {name: torch.stack([sample.layers[name] for sample in samples]) for name in names}
        keys, checksums = ([value for s in samples for value in getattr(s, field)] for field in ("keys", "checksums"))
        return cls(keys, checksums, layers if whole else None)

    def split(self, parts: int) -> Iterator["CachedOutputs"]:
        size = len(self.keys) // parts
        for first in range(0, len(self.keys), size):
            part = slice(first, first + size)
            layers = None if self.layers is None else {name: x[part] for name, x in self.layers.items()}
            yield CachedOutputs(self.keys[part], self.checksums[part], layers)


@dataclass(frozen=True)
class Batch:
    """image (N, 3, H, W), normalised; labels, valid: by zoom z, (H - 1) * z // 8 + 1 points high.

    labels.mask is False on ignore_label, padding and unlabelled images. valid is for terms that
    need no label: its mask is True on unlabelled images, too, and, with DISTILL.mask unpadded,
    everywhere but on padding.
    """

    image: Tensor
    labels: dict[int, Labels]
    valid: dict[int, Labels]
    cached: CachedOutputs | None


class Normalize:
    """(N, H, W, 3) -> float32 (N, 3, H, W) on the device, minus mean, over std, channels last."""

    def __init__(self, data: Data, device: torch.device):
        self.mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        image = image.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2)
        return (image.float() - self.mean) / self.std


class ToDevice:
    """The loader's batches -> TRAIN.accumulate Batches each, on the device, labels at `zooms`."""

    def __init__(self, data: Data, train: Train, mask: str, zooms: Collection[int], device: torch.device):
        self.normalize, self.device = Normalize(data, device), device
        self.parts, self.zooms = train.accumulate, sorted(zooms)
        padding, unlabelled = reserved_labels(train.ignore_label)
        self.not_labels = (train.ignore_label, padding, unlabelled)
        self.not_valid = (padding,) if mask == "unpadded" else (train.ignore_label, padding)

    def __call__(self, raw: tuple[Tensor, Tensor, CachedOutputs | None] | UserError) -> list[Batch]:
        """raw: image (N, H, W, 3), label (N, H, W), uint8; or the fault of a file, which is raised.

        Counts of valid positions are those of the whole batch over all processes: this is a
        collective.
        """
        if isinstance(raw, UserError):
            raise raw
        image, label, cached = raw
        image, label = self.normalize(image), label.to(self.device, non_blocking=True).long()
        grids = {zoom: sample_labels(label, zoom) for zoom in self.zooms}
        masks = {
            (kind, zoom): torch.stack([grid != value for value in excluded]).all(0)
            for kind, excluded in (("labels", self.not_labels), ("valid", self.not_valid))
            for zoom, grid in grids.items()
        }
        counts = distributed.all_reduce(torch.stack([mask.sum() for mask in masks.values()]).float())
        counts = (counts / (self.parts * distributed.world_size())).clamp(min=1e-6)
        of = dict(zip(masks, counts, strict=True))
        images, size = image.chunk(self.parts), len(image) // self.parts
        known = [None] * self.parts if cached is None else list(cached.split(self.parts))

        def labels(kind: str, number: int) -> dict[int, Labels]:
            rows = slice(number * size, (number + 1) * size)
            return {z: Labels(grid[rows], masks[kind, z][rows], of[kind, z]) for z, grid in grids.items()}

        return [Batch(images[i], labels("labels", i), labels("valid", i), known[i]) for i in range(self.parts)]
