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


RESNETS = {
    18: Spec(resnet.BasicBlock, (2, 2, 2, 2), resnet.ResNet18_Weights.IMAGENET1K_V1, 128),
    34: Spec(resnet.BasicBlock, (3, 4, 6, 3), resnet.ResNet34_Weights.IMAGENET1K_V1, 128),
    50: Spec(resnet.Bottleneck, (3, 4, 6, 3), resnet.ResNet50_Weights.IMAGENET1K_V1, 256),
    101: Spec(resnet.Bottleneck, (3, 4, 23, 3), resnet.ResNet101_Weights.IMAGENET1K_V1, 256),
    152: Spec(resnet.Bottleneck, (3, 8, 36, 3), resnet.ResNet152_Weights.IMAGENET1K_V1, 256),
}


def _stem(kind: str) -> nn.Sequential:
    """(N, 3, H, W) -> (N, 64 or 128, H/4, W/4). `plain`: one 7x7; `deep`: three 3x3 (64, 64, 128), as in semseg."""
    convs = (
        [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)]
        if kind == "plain"
        else [
            nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
        ]
    )
    layers: list[nn.Module] = []
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


def _dilate(stage: nn.Sequential, dilation: int) -> None:
    """Trade the stage's stride for dilation in every conv2, as semseg does (also in the stage's first block)."""
    for block in stage:
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)


def stages(layers: int, stem: str) -> list[nn.Sequential]:
    """layer0 .. layer4 of a ResNet of depth `layers`: strides 4, 4, 8, 8, 8; randomly initialised."""
    spec = RESNETS[layers]
    # Residual branches that begin at zero (Goyal et al., 2017) help where no ImageNet weights replace them.
    net = resnet.ResNet(spec.block, list(spec.blocks), zero_init_residual=True)
    layer0 = _stem(stem)
    if stem == "deep":  # layer1 then takes 128 channels
        net.inplanes = 128
        net.layer1 = net._make_layer(spec.block, 64, spec.blocks[0])
        for module in net.layer1.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _dilate(net.layer3, 2)
    _dilate(net.layer4, 4)
    return [layer0, net.layer1, net.layer2, net.layer3, net.layer4]
