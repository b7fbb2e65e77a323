"""The exported network: image in, logits of the same size out, in one graph for all sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.pspnet import PSPNet, PyramidConv
from util.config import Data


def _averages(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size): row i averages floor(i size / bins) .. ceil((i + 1) size / bins) - 1."""
    start = torch.arange(bins, device=like.device)[:, None] * size
    first, end = start // bins, (start + size + bins - 1) // bins
    position = torch.arange(size, device=like.device)[None]
    return ((position >= first) & (position < end)).to(like.dtype) / (end - first).to(like.dtype)


class AdaptiveAvgPool(nn.Module):
    """nn.AdaptiveAvgPool2d as two products with matrices computed from the input's size.

    ONNX has no adaptive pooling. Exporters replace it by pooling with a fixed kernel, which is
    correct for a single input size, and only if `bins` divides it.
    """

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, bins, bins)"""
        rows, columns = (_averages(x.shape[axis], self.bins, x) for axis in (2, 3))
        return rows @ x @ columns.t()


class Concatenated(nn.Module):
    """A PyramidConv as one convolution of one map: int8 quantisation finds the weights of those alone."""

    def __init__(self, conv: PyramidConv):
        super().__init__()
        self.conv = conv

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        maps = [maps[0], *(F.interpolate(x, size, mode="bilinear", align_corners=True) for x in maps[1:])]
        if maps[0].is_contiguous(memory_format=torch.channels_last):  # one bin alone has lost it, and all would with it
            maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
        return nn.Conv2d.forward(self.conv, torch.cat(maps, 1))


class Exportable(nn.Module):
    """image (N, 3, H, W) float32 -> logits (N, classes, H, W), for H and W of 9 or more.

    Changes `net`: it is frozen, loses its auxiliary head, and its pyramid is replaced. normalize:
    the graph takes RGB values 0 .. 255 and normalises them; otherwise it takes (RGB - mean) / std.
    """

    def __init__(self, net: PSPNet, data: Data, normalize: bool):
        super().__init__()
        net.aux = None
        self.net = net.freeze().to(memory_format=torch.contiguous_format)
        for branch in self.net.ppm.features:
            branch[0] = AdaptiveAvgPool(branch[0].output_size)
        self.net.cls[0] = Concatenated(self.net.cls[0])
        self.normalize = normalize
        self.register_buffer("mean", torch.tensor(data.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        if self.normalize:
            image = (image - self.mean) / self.std
        return F.interpolate(self.net(image).logits, image.shape[2:], mode="bilinear", align_corners=True)
