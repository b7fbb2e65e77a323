"""The network as it is exported: picture in, logits of the same size out, at any size, in one fixed graph."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.pspnet import PSPNet
from util.config import Data


def _averages(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size): row i averages positions floor(i size / bins) .. ceil((i + 1) size / bins) - 1."""
    start = torch.arange(bins, device=like.device)[:, None] * size
    first, end = start // bins, (start + size + bins - 1) // bins
    position = torch.arange(size, device=like.device)[None]
    return ((position >= first) & (position < end)).to(like.dtype) / (end - first).to(like.dtype)


class AdaptiveAvgPool(nn.Module):
    """nn.AdaptiveAvgPool2d as two products with matrices that the graph itself makes from the input's size.

    ONNX has no adaptive pooling. Exporters write it as pooling with a fixed kernel, which is another thing as soon as
    `bins` does not divide the size, and right for one size only.
    """

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, bins, bins)"""
        rows, columns = (_averages(x.shape[axis], self.bins, x) for axis in (2, 3))
        return rows @ x @ columns.t()


class Exportable(nn.Module):
    """image (N, 3, H, W) float32 -> logits (N, classes, H, W), for any H and W from 9 up.

    Takes `net` over: frozen, without its auxiliary head, its pooling replaced. normalize: the graph takes RGB values
    0 .. 255 and normalises them by itself; otherwise they come as (RGB - mean) / std.
    """

    def __init__(self, net: PSPNet, data: Data, normalize: bool):
        super().__init__()
        net.aux = None
        self.net = net.freeze().to(memory_format=torch.contiguous_format)
        for branch in self.net.ppm.features:
            branch[0] = AdaptiveAvgPool(branch[0].output_size)
        self.normalize = normalize
        self.register_buffer("mean", torch.tensor(data.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        if self.normalize:
            image = (image - self.mean) / self.std
        return F.interpolate(self.net(image).logits, image.shape[2:], mode="bilinear", align_corners=True)
