"""A network of another library in a teacher's place: fed as its own files say, read on our grid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.pspnet import Output
from model.upsample import linear_weights
from util import distributed
from util.keys import Data

Size = tuple[int, int]  # height, width
Sampler = Callable[[Tensor], Tensor]  # maps (N, C, h, w) of the whole image, any h and w -> at the stride-8 points


class Input(NamedTuple):
    """What a network's own files say of its input."""

    mean: list[float]  # of pixels from 0 to 255, RGB
    std: list[float]
    size: Callable[[Size], Size]  # an image's size -> that which the network is fed
    bgr: bool = False


class Foreign(nn.Module):
    """Raw scores of `net` for images that DATA.mean and std have normalised, at the stride-8 grid's own points.

    read(what net returns, sampler) -> its classes' scores (N, T, h, w). The net computes in dtype by autocast, from
    weights in float32: what is around it stays in float32. Images are resized to the size of its own pipeline.
    """

    aux = None

    def __init__(
        self,
        net: nn.Module,
        classes: int,
        feed: Input,
        read: Callable[[Any, Sampler], Tensor],
        data: Data,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.classes, self.size, self.bgr, self.read, self.dtype = classes, feed.size, feed.bgr, read, dtype
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std, feed.mean, feed.std)
        )
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def channels(self) -> dict[str, int]:
        return {"logits": self.classes}

    def forward(self, image: Tensor) -> Output:
        """image: (N, 3, H, W)."""
        height, width = image.shape[2:]
        with torch.autocast(image.device.type, enabled=False):
            pixels = image.float() * self.scale + self.shift
            if (size := self.size((height, width))) != (height, width):
                pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
            if self.bgr:
                pixels = pixels.flip(1)
            with distributed.autocast(self.dtype):
                raw = self.net(pixels)
            return Output(self.read(raw, lambda maps: sample(maps.float(), (height, width))), None, {})


def shorter_side(target: int, longest: int | None = None, multiple: int = 1) -> Callable[[Size], Size]:
    """Sizes of the same shape whose shorter side is `target`, or less where the longer would be above `longest`."""

    def resized(size: Size) -> Size:
        scale = target / min(size)
        if longest and max(size) * scale > longest:
            scale = longest / max(size)
        return tuple(max(multiple, -(-round(side * scale) // multiple) * multiple) for side in size)

    return resized


def sample(maps: Tensor, size: Size) -> Tensor:
    """(N, C, h, w), float32, that cover an image of `size` (H, W) -> (N, C, ceil(H/8), ceil(W/8)).

    The values that upsampling to H x W by half-pixel centres (align_corners=False, as these libraries do) gives at the
    pixels on which our grid's points lie, between which align_corners=True interpolates.
    """
    rows, columns = (_weights(length, cells, maps) for length, cells in zip(size, maps.shape[2:], strict=True))
    return rows @ maps @ columns.T


def _weights(length: int, cells: int, like: Tensor) -> Tensor:
    """(ceil(length / 8), cells): what each of the grid's points takes of each cell."""
    points = torch.linspace(0, length - 1, (length - 1) // 8 + 1, device=like.device)
    where = ((points + 0.5) * (cells / length) - 0.5).clamp(0, cells - 1)
    return linear_weights(where, cells)
