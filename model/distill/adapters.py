"""Learned adapters from student to teacher features; trained with the student, absent from its state_dict."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.pspnet import Output, PSPNet

Adapter = Callable[..., nn.Module]  # (student channels, teacher channels, its options) -> module


class MaskedGenerator(nn.Module):
    """mgd: positions are dropped at random with probability `ratio`, two 3x3 convolutions restore the teacher's map.

    (N, student, h, w) -> (N, teacher, h, w). Yang et al., "Masked Generative Distillation", ECCV 2022.
    """

    def __init__(self, student: int, teacher: int, *, ratio: Annotated[float, Field(ge=0, le=1)] = 0.75):
        super().__init__()
        self.ratio = ratio
        self.align = nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)
        self.restore = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.align(x)
        kept = torch.rand(len(x), 1, *x.shape[2:], device=x.device) >= self.ratio
        return self.restore(x * kept)


class CBAM(nn.Module):
    """attnfd: CBAM (Woo et al., ECCV 2018), then a 1x1 convolution with BatchNorm to the teacher's channels.

    (N, student, h, w) -> (N, teacher, h, w).
    """

    def __init__(self, student: int, teacher: int):
        super().__init__()
        hidden = max(student // 16, 4)
        self.channels = nn.Sequential(
            nn.Conv2d(student, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, student, 1)
        )
        self.positions = nn.Conv2d(2, 1, 7, padding=3)
        self.align = nn.Sequential(nn.Conv2d(student, teacher, 1, bias=False), nn.BatchNorm2d(teacher))

    def forward(self, x: Tensor) -> Tensor:
        pools = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        x = x * torch.sigmoid(sum(self.channels(pool) for pool in pools))
        x = x * torch.sigmoid(self.positions(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        return self.align(x)


def conv1x1(student: int, teacher: int) -> nn.Module:
    """(N, student, h, w) -> (N, teacher, h, w)."""
    return nn.Conv2d(student, teacher, 1)


def conv1x1_if_channels_differ(student: int, teacher: int) -> nn.Module:
    return nn.Identity() if student == teacher else conv1x1(student, teacher)


def identity(student: int, teacher: int) -> nn.Module:
    """For losses that compare maps of different channels."""
    return nn.Identity()


class StudentWithAdapters(nn.Module):
    """The student and its adapters as one module, so that DistributedDataParallel wraps both.

    layers: for each adapter, the student's layer that it reads and the teacher's layer whose grid it is resized to.
    forward returns the student's Output with the adapted maps among its features, under the adapters' names.
    """

    def __init__(self, net: PSPNet, adapters: nn.ModuleDict, layers: Mapping[str, tuple[str, str]]):
        super().__init__()
        self.net, self.adapters, self.layers = net, adapters, dict(layers)

    def forward(self, image: Tensor) -> Output:
        output = self.net(image)
        adapted = {}
        for name, adapter in self.adapters.items():
            student_layer, teacher_layer = self.layers[name]
            x, grid = output.layer(student_layer), output.grid(teacher_layer)
            if x.shape[2:] != grid:
                x = F.interpolate(x, grid, mode="bilinear", align_corners=True)
            adapted[name] = adapter(x)
        return output._replace(features=output.features | adapted)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """As PSPNet's; adapters are new, and learn as the heads do."""
        backbone, heads = self.net.parameter_groups()
        return backbone, heads + list(self.adapters.parameters())
