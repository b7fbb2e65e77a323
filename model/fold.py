"""BatchNorm folded into convolutions, for networks that only infer."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def fold_batchnorm(net: nn.Module) -> None:
    """Everywhere in `net` (in eval mode), fold a BatchNorm that follows a convolution into it, in place.

    "Follows" means: is the next child, as in nn.Sequential and in torchvision's blocks, and is given what the
    convolution has made, as a blank image shows (in some of timm's models it is given a sum of several).
    """
    seen: dict[nn.Module, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda conv, _, output: seen.update({conv: output}))
        if isinstance(module, nn.Conv2d)
        else module.register_forward_pre_hook(lambda bn, inputs: seen.update({bn: inputs[0]}))
        for module in net.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    net(next(net.parameters()).new_zeros(1, 3, 65, 65))
    for handle in handles:
        handle.remove()
    for parent in list(net.modules()):
        children = list(parent.named_children())
        for (name, conv), (bn_name, bn) in zip(children, children[1:], strict=False):
            pair = isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
            if pair and conv in seen and seen[conv] is seen.get(bn):
                setattr(parent, name, fuse_conv_bn_eval(conv, bn))
                setattr(parent, bn_name, getattr(bn, "act", nn.Identity()))  # timm's has an activation in it
