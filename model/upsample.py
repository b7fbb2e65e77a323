"""Bilinear enlargement a few rows at a time, so that full-size scores never exist as a whole.

At 473x473 one float32 tensor of 21 scores a pixel is 19 MB an image, of 150 classes 134 MB; softmax, its gradient
and the resizing would each write and read several. A block of rows stays in the cache instead. As a product with
two small matrices, resizing is also several times faster than F.interpolate's backward on a CPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = {"cpu": 3 << 19, "cuda": 1 << 26}  # values a block: what fits a CPU's cache; what keeps a GPU busy


def weights(size: int, source: int, like: Tensor) -> Tensor:
    """(size, source), as `like`: row i holds what point i of `size` takes of each of `source` points, ends on ends."""
    where = torch.arange(size, dtype=torch.float64, device=like.device) * ((source - 1) / max(size - 1, 1))
    points = torch.arange(source, dtype=torch.float64, device=like.device)
    return (1 - (where[:, None] - points).abs()).clamp(min=0).to(like.dtype)


class BilinearUpsampler:
    """x (N, C, h, w), seen at `size` (H, W) as F.interpolate(bilinear, align_corners=True) would show it.

    columns: the part of W that is wanted.
    """

    def __init__(self, x: Tensor, size: tuple[int, int], columns: slice = slice(None)):
        self.height, self.source = size[0], x.shape[2]
        self.down = weights(size[0], x.shape[2], x)
        self.across = weights(size[1], x.shape[3], x)[columns]
        self.wide = x.contiguous() @ self.across.T  # (N, C, h, W)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[slice]:
        """Rows `first` to `last` (exclusive) in slices of BLOCK values."""
        n, classes, _, width = self.wide.shape
        last = self.height if last is None else last
        step = max(BLOCK.get(self.wide.device.type, BLOCK["cuda"]) // (n * classes * width), 1)
        for start in range(first, last, step):
            yield slice(start, min(start + step, last))

    def _band(self, rows: slice) -> tuple[Tensor, slice]:
        """The part of `down` that makes `rows`, and the source rows that it takes."""
        scale, below = self.source - 1, max(self.height - 1, 1)
        band = slice(rows.start * scale // below, (rows.stop - 1) * scale // below + 2)
        return self.down[rows, band], band

    def rows(self, rows: slice) -> Tensor:
        """(N, C, rows, W)."""
        down, band = self._band(rows)
        return down @ self.wide[:, :, band]

    def add_gradient(self, total: Tensor, rows: slice, grad: Tensor) -> None:
        """Add what `grad`, the gradient for rows(rows), means for `wide` to `total`, of wide's shape."""
        down, band = self._band(rows)
        total[:, :, band] += down.T @ grad
