"""Cross entropy of a batch, and the mean over valid positions that all losses take."""

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
    def forward(ctx, logits, label, mask):
        upsampler = BilinearUpsampler(logits, label.shape[1:])
        gradient, total = torch.zeros_like(upsampler.columns_done), logits.new_zeros(())
        for rows in upsampler.blocks():
            valid = mask[:, None, rows]
            index = label[:, None, rows].where(valid, 0)
            scores = upsampler.rows(rows).log_softmax(1)
            total -= scores.gather(1, index).where(valid, 0).sum()
            if ctx.needs_input_grad[0]:
                scores.exp_()
                scores.scatter_(1, index, scores.gather(1, index) - 1).masked_fill_(~valid, 0)
                upsampler.add_gradient(gradient, rows, scores)
        ctx.save_for_backward(gradient @ upsampler.column_weights)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None, None


def cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    """Mean cross entropy over valid pixels. logits (N, C, h, w) are upsampled to the labels' grid."""
    logits = to_float32(logits)
    if logits.shape[2:] == labels.label.shape[1:]:
        total = F.cross_entropy(logits, labels.label.where(labels.mask, -100), reduction="sum")
    else:
        with torch.autocast(logits.device.type, enabled=False):  # it would compute the products in bfloat16
            total = _UpsampledCrossEntropy.apply(logits, labels.label, labels.mask)
    return total / labels.count


def supervised_losses(output: Output, labels: Labels) -> dict[str, Tensor]:
    """The terms of plain PSPNet training: cross entropy of the final and of the auxiliary output."""
    return {"ce": cross_entropy(output.logits, labels), "aux_ce": cross_entropy(output.aux, labels)}
