"""Each loss term's share of the gradient at the deepest shared layer, as a help in choosing weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from model.distill.adapters import StudentWithAdapters
from model.pspnet import PSPNet
from model.timm_backbone import TimmBackbone


class GradientShares:
    """Each weighted term's gradient norm at the output of the student's deepest layer that all terms reach.

    That is layer3, which the auxiliary head reads, or an earlier one that a hint reads. While entered, that output is
    kept; `of` then goes back from the terms to it alone, through the graph that the step builds anyway: no second
    forward pass, no change to BatchNorm's statistics, and DistributedDataParallel's hooks do not run.

    A backbone of timm gives maps that need not be made of each other: there it is all its maps together.
    """

    def __init__(self, model: PSPNet | StudentWithAdapters, names: Iterable[str]):
        """names: of the terms; a hint's ends in the student's layer."""
        net = model.net if isinstance(model, StudentWithAdapters) else model
        layers = {"layer3"} | ({"layer1", "layer2"} & {name.rpartition("_")[2] for name in names})
        timm = isinstance(getattr(net, "layer0", None), TimmBackbone)
        self.module = net.layer0 if timm else getattr(net, min(layers))

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self._keep)

    def __exit__(self, *_) -> None:
        self.handle.remove()

    def _keep(self, _module, _input, output: Tensor | list[Tensor]) -> None:
        self.maps = output if isinstance(output, list) else [output]

    def of(self, weighted: Mapping[str, Tensor]) -> dict[str, float]:
        """`share_NAME` for each term: its norm over the sum of all norms."""
        norms = torch.zeros(len(weighted))
        for i, term in enumerate(weighted.values()):
            if term.requires_grad:
                gradients = torch.autograd.grad(term, self.maps, retain_graph=True, allow_unused=True)
                found = [gradient.float().norm() for gradient in gradients if gradient is not None]
                norms[i] = torch.stack(found).norm() if found else 0
        del self.maps
        norms = norms / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
        return {f"share_{name}": norm for name, norm in zip(weighted, norms.tolist(), strict=True)}
