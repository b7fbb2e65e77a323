"""Dilated ResNets of output stride 8, made of torchvision's blocks, with its ImageNet weights.

A new backbone is one entry in RESNETS.
"""

from typing import NamedTuple

from torch import nn
from torchvision.models import resnet


class Spec(NamedTuple):
    block: type[nn.Module]  # torchvision's BasicBlock or Bottleneck
    blocks: tuple[int, int, int, int]  # blocks in layer1 .. layer4
    weights: resnet.WeightsEnum  # torchvision's ImageNet weights (plain stem)
    aux_channels: int  # width of the auxiliary head on layer3
    width: int = 64  # channels of the 3x3 convolutions in layer1; layer2 .. layer4 have 2, 4 and 8 times as many


RESNETS = {
    18: Spec(resnet.BasicBlock, (2, 2, 2, 2), resnet.ResNet18_Weights.IMAGENET1K_V1, 128),
    34: Spec(resnet.BasicBlock, (3, 4, 6, 3), resnet.ResNet34_Weights.IMAGENET1K_V1, 128),
    50: Spec(resnet.Bottleneck, (3, 4, 6, 3), resnet.ResNet50_Weights.IMAGENET1K_V1, 256),
    101: Spec(resnet.Bottleneck, (3, 4, 23, 3), resnet.ResNet101_Weights.IMAGENET1K_V1, 256),
    152: Spec(resnet.Bottleneck, (3, 8, 36, 3), resnet.ResNet152_Weights.IMAGENET1K_V1, 256),
}


def _stem(kind: str, width: int) -> nn.Sequential:
    """(N, 3, H, W) -> (N, C, H/4, W/4). `plain`: one 7x7, C = width. `deep`: three 3x3 of width, width
    and C = 2 * width channels, as in semseg."""
    convs = (
        [nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)]
        if kind == "plain"
        else [
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        ]
    )
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


def _stage(block: type[nn.Module], channels: int, width: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    """`count` residual blocks: (N, channels, H, W) -> (N, width * block.expansion, H/stride, W/stride).

    The dilation is that of conv2 in every block, the stage's first one included, as in semseg.
    """
    out = width * block.expansion
    shortcut = None
    if stride > 1 or channels != out:
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    blocks = [block(channels, width, stride, shortcut), *(block(out, width) for _ in range(count - 1))]
    for residual in blocks:
        # Set afterwards because BasicBlock's constructor refuses a dilation.
        residual.conv2.dilation = residual.conv2.padding = (dilation, dilation)
        # Residual branches that begin at zero (Goyal et al., 2017) help where no ImageNet weights replace them.
        nn.init.zeros_((residual.bn3 if hasattr(residual, "bn3") else residual.bn2).weight)
    return nn.Sequential(*blocks)


def stages(layers: int, stem: str) -> list[nn.Sequential]:
    """layer0 .. layer4 of a ResNet of depth `layers`: strides 4, 4, 8, 8, 8; randomly initialised."""
    spec = RESNETS[layers]
    result, channels = [_stem(stem, spec.width)], spec.width * (2 if stem == "deep" else 1)
    for i, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
        width = spec.width * 2**i
        result.append(_stage(spec.block, channels, width, spec.blocks[i], stride, dilation))
        channels = width * spec.block.expansion
    for module in nn.ModuleList(result).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return result
