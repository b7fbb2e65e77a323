"""Label values that are reserved, and labels on a coarser grid."""

from typing import NamedTuple

import torch
from torch import Tensor

LABELS = 256  # possible values of a label


def reserved_labels(ignore_label: int) -> tuple[int, int]:
    """The label values of padding and of unlabelled images' pixels: the two largest but ignore_label."""
    padding, unlabelled = [value for value in (255, 254, 253) if value != ignore_label][:2]
    return padding, unlabelled


class Labels(NamedTuple):
    """A batch's labels on one grid of points.

    label: (N, h, w) int64: class index, ignore_label or a reserved label. mask: (N, h, w) bool, where a term counts.
    count: what a sum over this batch is divided by: the number of valid positions of the whole batch over (processes *
    accumulated parts), so that the mean of their losses, which DDP takes, is the mean over all valid positions.
    """

    label: Tensor
    mask: Tensor
    count: Tensor

    @classmethod
    def of(cls, label: Tensor, ignore_label: int) -> "Labels":
        mask = label != ignore_label
        return cls(label, mask, mask.sum().clamp(min=1))


def sample_labels(label: Tensor, zoom_factor: int) -> Tensor:
    """(N, H, W) -> (N, h, w), h = (H - 1) * zoom_factor // 8 + 1, at the points where align_corners puts the grid.

    For H = 8n + 1 that is every (8 / zoom_factor)-th pixel. Labels are picked, never interpolated.
    """
    for axis in (1, 2):
        size = label.shape[axis]
        points = torch.linspace(0, size - 1, (size - 1) * zoom_factor // 8 + 1, device=label.device).round().long()
        label = label if len(points) == size else label.index_select(axis, points)
    return label
