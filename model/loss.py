"""Cross entropy on a batch, and the one rule by which every loss is averaged."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.enlarge import Enlarged
from model.pspnet import Output


def markers(ignore_label: int) -> tuple[int, int]:
    """The two label values that mark padding and pixels of unlabelled images: the largest but ignore_label."""
    padding, unlabelled = [value for value in (255, 254, 253) if value != ignore_label][:2]
    return padding, unlabelled


class Labels(NamedTuple):
    """A batch's labels on one grid of points.

    label: (N, h, w) int64: class index, ignore_label, or one of `markers`. mask: (N, h, w) bool, where a term counts.
    count: the number that a sum over this batch is divided by. It is the number of valid positions of the batch,
    or, where a batch is spread over processes and forward passes, of all of it divided by how many share it: so
    the mean of the shares' losses is the mean over the whole batch's valid positions, not a mean of means.
    """

    label: Tensor
    mask: Tensor
    count: Tensor

    @classmethod
    def of(cls, label: Tensor, ignore_label: int) -> "Labels":
        mask = label != ignore_label
        return cls(label, mask, mask.sum().clamp(min=1))


def sample(label: Tensor, zoom_factor: int) -> Tensor:
    """(N, H, W) -> (N, h, w), h = (H - 1) * zoom_factor // 8 + 1, at the points where align_corners puts the grid.

    For H = 8n + 1 that is every (8 / zoom_factor)-th pixel. Labels are picked, never interpolated.
    """
    for axis in (1, 2):
        size = label.shape[axis]
        points = torch.linspace(0, size - 1, (size - 1) * zoom_factor // 8 + 1, device=label.device).round().long()
        label = label if len(points) == size else label.index_select(axis, points)
    return label


def wide(x: Tensor) -> Tensor:
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
        seen = Enlarged(logits, label.shape[1:])
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
    logits = wide(logits)
    if logits.shape[2:] == labels.label.shape[1:]:
        total = F.cross_entropy(logits, labels.label.where(labels.mask, -100), reduction="sum")
    else:
        with torch.autocast(logits.device.type, enabled=False):  # its products would be of bfloat16
            total = _EnlargedCrossEntropy.apply(logits, labels.label, labels.mask)
    return total / labels.count


def supervised(output: Output, labels: Labels) -> dict[str, Tensor]:
    """The terms of plain PSPNet training: cross entropy of the final and of the auxiliary output."""
    return {"ce": cross_entropy(output.logits, labels), "aux_ce": cross_entropy(output.aux, labels)}
