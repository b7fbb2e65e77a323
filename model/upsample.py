"""Bilinear upsampling a few rows at a time, so that full-size logits never exist as a whole.

At 473x473 one float32 tensor of 21 scores a pixel is 19 MB an image, of 150 classes 134 MB; softmax, its gradient
and the resizing would each write and read several. A block of rows stays in the cache instead. As a product with
two small matrices, resizing is also several times faster than F.interpolate's backward on a CPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = {"cpu": 3 << 19, "cuda": 1 << 26}  # values a block: what fits a CPU's cache; what keeps a GPU busy


def interpolation_matrix(out_size: int, in_size: int, like: Tensor) -> Tensor:
    """(out_size, in_size), dtype and device of `like`: linear interpolation with align_corners=True."""
    where = torch.arange(out_size, dtype=torch.float64, device=like.device) * ((in_size - 1) / max(out_size - 1, 1))
    return linear_weights(where, in_size).to(like.dtype)


def linear_weights(where: Tensor, in_size: int) -> Tensor:
    """(len(where), in_size): linear interpolation between points 0 .. in_size - 1, at `where` in that range."""
    points = torch.arange(in_size, dtype=where.dtype, device=where.device)
    return (1 - (where[:, None] - points).abs()).clamp(min=0)


class BilinearUpsampler:
    """x (N, C, h, w) at `size` (H, W), as F.interpolate(bilinear, align_corners=True) gives it, rows on demand.

    columns: the part of W that is wanted.
    """

    def __init__(self, x: Tensor, size: tuple[int, int], columns: slice = slice(None)):
        self.height, self.in_height = size[0], x.shape[2]
        self.row_weights = interpolation_matrix(size[0], x.shape[2], x)
        self.column_weights = interpolation_matrix(size[1], x.shape[3], x)[columns]
        self.columns_done = x.contiguous() @ self.column_weights.T  # (N, C, h, W)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[slice]:
        """Rows `first` to `last` (exclusive) in slices of about BLOCK values."""
        n, classes, _, width = self.columns_done.shape
        last = self.height if last is None else last
        step = max(BLOCK.get(self.columns_done.device.type, BLOCK["cuda"]) // (n * classes * width), 1)
        for start in range(first, last, step):
            yield slice(start, min(start + step, last))

    def _band(self, rows: slice) -> tuple[Tensor, slice]:
        """The part of row_weights that makes `rows`, and the input rows that it reads."""
        scale, below = self.in_height - 1, max(self.height - 1, 1)
        band = slice(rows.start * scale // below, (rows.stop - 1) * scale // below + 2)
        return self.row_weights[rows, band], band

    def rows(self, rows: slice) -> Tensor:
        """(N, C, rows, W)."""
        weights, band = self._band(rows)
        return weights @ self.columns_done[:, :, band]

    def add_gradient(self, total: Tensor, rows: slice, grad: Tensor) -> None:
        """Add to `total`, shaped like columns_done, its gradient where that of rows(rows) is `grad`."""
        weights, band = self._band(rows)
        total[:, :, band] += weights.T @ grad
