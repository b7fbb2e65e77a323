"""BatchNorm folded into convolutions, for networks that only infer."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batchnorm(parent: nn.Module) -> None:
    """Everywhere below `parent` (in eval mode), fold a BatchNorm that follows a convolution into it, in place.

    "Follows" means: is the next child, as in nn.Sequential, in torchvision's blocks and in timm's.
    """
    children = list(parent.named_children())
    for _, child in children:
        fold_batchnorm(child)
    for (name, conv), (bn_name, bn) in zip(children, children[1:], strict=False):
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            setattr(parent, name, fuse_conv_bn_eval(conv, bn))
            setattr(parent, bn_name, getattr(bn, "act", nn.Identity()))  # timm's BatchNorm has an activation in it
