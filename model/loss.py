"""Cross entropy of a batch, and the mean over valid positions that all losses take."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.labels import Labels
from model.pspnet import Output
from model.upsample import BilinearUpsampler


def to_float32(x: Tensor) -> Tensor:
    """bfloat16 and float16 as float32, others as they are: exponentials and sums need more than 8 bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def masked_mean(values: Tensor, labels: Labels) -> Tensor:
    """Mean of `values` (N, h, w) over the valid positions; 0 when there is none."""
    return torch.where(labels.mask, values, 0).sum() / labels.count


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of logits (N, C, h, w), upsampled to the label's size in blocks of rows.

    The gradient is computed in the forward pass: it is as small as the logits, what it is made of is not.
    """

    @staticmethod
    def forward(ctx, logits, label, mask, class_weights):
        upsampler = BilinearUpsampler(logits, label.shape[1:])
        gradient, total = torch.zeros_like(upsampler.columns_done), logits.new_zeros(())
        for rows in upsampler.blocks():
            valid = mask[:, None, rows]
            index = label[:, None, rows].where(valid, 0)
            scores = upsampler.rows(rows).log_softmax(1)
            weight = valid if class_weights is None else class_weights[index] * valid
            total -= (scores.gather(1, index) * weight).sum()
            if ctx.needs_input_grad[0]:
                scores.exp_()
                scores.scatter_(1, index, scores.gather(1, index) - 1).mul_(weight)
                upsampler.add_gradient(gradient, rows, scores)
        ctx.save_for_backward(gradient @ upsampler.column_weights)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None, None, None


def cross_entropy(logits: Tensor, labels: Labels, class_weights: Sequence[float] | None = None) -> Tensor:
    """Mean over valid pixels of the cross entropy, each times its class's weight if there are any.

    logits (N, C, h, w) are upsampled to the labels' grid.
    """
    logits = to_float32(logits)
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    if logits.shape[2:] == labels.label.shape[1:]:
        total = F.cross_entropy(logits, labels.label.where(labels.mask, -100), weights, reduction="sum")
    else:
        with torch.autocast(logits.device.type, enabled=False):  # it would compute the products in bfloat16
            total = _UpsampledCrossEntropy.apply(logits, labels.label, labels.mask, weights)
    return total / labels.count


def supervised_losses(
    output: Output, labels: Labels, class_weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The terms of plain PSPNet training: cross entropy of the final and of the auxiliary output."""
    outputs = {"ce": output.logits, "aux_ce": output.aux}
    return {name: cross_entropy(logits, labels, class_weights) for name, logits in outputs.items()}
