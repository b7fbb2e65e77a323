"""Cross entropy on a batch, and the one rule by which every loss is averaged."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.labels import Labels
from model.pspnet import Output
from model.upsample import BilinearUpsampler


def to_float32(x: Tensor) -> Tensor:
    """`x` in float32 or float64: exponentials and sums need more than bfloat16's 8 bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def masked_mean(values: Tensor, labels: Labels) -> Tensor:
    """Mean of `values` (N, h, w) over the valid positions; 0 when there is none."""
    return torch.where(labels.mask, values, 0).sum() / labels.count


class _EnlargedCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of logits (N, C, h, w) that are seen at label's size, in blocks of rows.

    The gradient is made on the way forward: it is as small as the logits, what it is made of is not.
    """

    @staticmethod
    def forward(ctx, logits, label, mask):
        seen = BilinearUpsampler(logits, label.shape[1:])
        gradient, total = torch.zeros_like(seen.wide), logits.new_zeros(())
        for rows in seen.blocks():
            valid = mask[:, None, rows]
            index = label[:, None, rows].where(valid, 0)
            scores = seen.rows(rows).log_softmax(1)
            total -= scores.gather(1, index).where(valid, 0).sum()
            if ctx.needs_input_grad[0]:
                scores.exp_()
                scores.scatter_(1, index, scores.gather(1, index) - 1).masked_fill_(~valid, 0)
                seen.add_gradient(gradient, rows, scores)
        ctx.save_for_backward(gradient @ seen.across)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None, None


def cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    """Mean cross entropy over valid pixels. logits (N, C, h, w) are first resized to the labels' grid."""
    logits = to_float32(logits)
    if logits.shape[2:] == labels.label.shape[1:]:
        total = F.cross_entropy(logits, labels.label.where(labels.mask, -100), reduction="sum")
    else:
        with torch.autocast(logits.device.type, enabled=False):  # its products would be of bfloat16
            total = _EnlargedCrossEntropy.apply(logits, labels.label, labels.mask)
    return total / labels.count


def supervised_losses(output: Output, labels: Labels) -> dict[str, Tensor]:
    """The terms of plain PSPNet training: cross entropy of the final and of the auxiliary output."""
    return {"ce": cross_entropy(output.logits, labels), "aux_ce": cross_entropy(output.aux, labels)}
