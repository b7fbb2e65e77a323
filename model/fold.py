"""What a network that only infers is made of: convolution, bias, residual sum and ReLU in one pass over the data.

On a CPU that saves reading and writing each output once or twice more; oneDNN does it through the operator that
torch.compile's CPU backend uses. Elsewhere, and where that operator is missing, the same steps follow one another.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck


class FusedConv2d(nn.Module):
    """relu(conv(x) + plus), as the arguments say; `conv` is a convolution with its BatchNorm folded in."""

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        conv = self.conv
        if not _fusable(x, conv.weight):
            out = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
            out = out if plus is None else out + plus
            return F.relu(out) if self.relu else out
        how = conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups
        after = ("relu" if self.relu else None), [], None
        if plus is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *how, after[0] or "none", *after[1:])
        return torch.ops.mkldnn._convolution_pointwise.binary(x, plus, *how, "add", 1.0, *after)


def _fusable(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # it fuses by itself
        and not torch.jit.is_tracing()  # an exported file keeps to common operators
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


class FrozenBlock(nn.Module):
    """torchvision's BasicBlock or Bottleneck, of fused convolutions."""

    def __init__(self, block: BasicBlock | Bottleneck):
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(FusedConv2d(fuse_conv_bn_eval(*pair), relu=True) for pair in pairs)
        self.downsample = None if block.downsample is None else FusedConv2d(fuse_conv_bn_eval(*block.downsample), False)

    def forward(self, x: Tensor) -> Tensor:
        rest = x if self.downsample is None else self.downsample(x)
        *first, last = self.convs
        for conv in first:
            x = conv(x)
        return last(x, rest)


def fuse(parent: nn.Module) -> None:
    """Replace, everywhere below `parent` (in eval mode), ResNet blocks and runs of convolution, BatchNorm, ReLU."""
    children = list(parent.named_children())
    for name, child in children:
        if isinstance(child, BasicBlock | Bottleneck):
            setattr(parent, name, FrozenBlock(child))
        else:
            fuse(child)
    for (name, conv), (bn_name, bn), (relu_name, relu) in zip(children, children[1:], children[2:], strict=False):
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d) and isinstance(relu, nn.ReLU):
            setattr(parent, name, FusedConv2d(fuse_conv_bn_eval(conv, bn), relu=True))
            setattr(parent, bn_name, nn.Identity())
            setattr(parent, relu_name, nn.Identity())
