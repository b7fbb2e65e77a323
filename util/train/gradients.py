"""How strongly each loss term pulls at what all terms share, so that weights can be chosen by looking."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.distill.adapters import StudentWithAdapters
from model.pspnet import PSPNet


class GradientShares:
    """Each weighted term's gradient norm at the output of the student's deepest layer that all terms reach.

    That is layer3, on which the auxiliary head sits, or an earlier one that a hint names. While entered, that output
    is kept; `shares` then goes back from the terms to it alone, through the graph that the step makes anyway: no
    forward pass more, no BatchNorm statistics touched, and DistributedDataParallel's hooks are not reached.
    """

    def __init__(self, model: PSPNet | StudentWithAdapters):
        net, own = (model.net, model.layers.values()) if isinstance(model, StudentWithAdapters) else (model, ())
        layers = ["layer3", *(layer for layer, _ in own if layer.startswith("layer"))]
        self.module = getattr(net, min(layers))

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self._keep)

    def __exit__(self, *_) -> None:
        self.handle.remove()

    def _keep(self, _module, _input, output: Tensor) -> None:
        self.output = output

    def shares(self, weighted: Mapping[str, Tensor]) -> dict[str, float]:
        """`share_NAME` for each term: its norm over the sum of all norms."""
        norms = torch.zeros(len(weighted))
        for i, term in enumerate(weighted.values()):
            if term.requires_grad:
                (gradient,) = torch.autograd.grad(term, self.output, retain_graph=True, allow_unused=True)
                norms[i] = 0 if gradient is None else gradient.float().norm()
        del self.output
        norms = norms / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
        return {f"share_{name}": norm for name, norm in zip(weighted, norms.tolist(), strict=True)}
