"""Distillation losses on class scores: student and teacher are logits (N, C, h, w), labels on the same (h, w).

labels.mask says where the term counts; dkd alone reads the classes. No gradient reaches the teacher.
"""

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from model.labels import Labels
from model.loss import masked_mean, to_float32


def standardise(logits: Tensor) -> Tensor:
    """Each pixel's logits minus their mean over classes, over their standard deviation: (N, C, h, w), float32.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024: the student matches the relation of the
    teacher's logits, not their magnitude. Apply it to both before any loss below.
    """
    logits = to_float32(logits)
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()


def kl(student: Tensor, teacher: Tensor, labels: Labels, *, temperature: PositiveFloat = 2.0) -> Tensor:
    """T^2 * mean over valid pixels of KL(softmax(teacher / T) || softmax(student / T)), summed over classes.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; per pixel in Liu et al., CVPR 2019.
    The factor T^2 keeps the gradient's size when T changes.
    """
    log_p = F.log_softmax(to_float32(teacher.detach()) / temperature, 1)
    log_q = F.log_softmax(to_float32(student) / temperature, 1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    return temperature**2 * masked_mean(divergence, labels)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Labels,
    *,
    temperature: PositiveFloat = 2.0,
    alpha: NonNegativeFloat = 1.0,
    beta: NonNegativeFloat = 1.0,
) -> Tensor:
    """T^2 * mean over labelled pixels of alpha * KL(target or not) + beta * KL(among the other classes).

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022: kl is the same with beta = 1 - p(target), which is small
    where the teacher is confident; here beta is free (published: 1 to 8). Needs labels.
    """
    classes = torch.arange(student.shape[1], device=student.device).view(1, -1, 1, 1)
    target = classes == labels.label.where(labels.mask, 0).unsqueeze(1)

    def parts(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(target), log p(not target), both (N, h, w), and log p(class | not target), -inf at the target."""
        log_p = F.log_softmax(to_float32(logits) / temperature, 1)
        others = log_p.masked_fill(target, -torch.inf)
        log_rest = others.logsumexp(1)
        return log_p.masked_fill(~target, 0).sum(1), log_rest, others - log_rest.unsqueeze(1)

    log_t, log_rest_t, others_t = parts(teacher.detach())
    log_s, log_rest_s, others_s = parts(student)
    binary = log_t.exp() * (log_t - log_s) + log_rest_t.exp() * (log_rest_t - log_rest_s)
    among = (others_t.exp() * (others_t - others_s).masked_fill(target, 0)).sum(1)
    return temperature**2 * masked_mean(alpha * binary + beta * among, labels)


def dist(
    student: Tensor,
    teacher: Tensor,
    labels: Labels,
    *,
    temperature: PositiveFloat = 1.0,
    inter: NonNegativeFloat = 1.0,
    intra: NonNegativeFloat = 1.0,
) -> Tensor:
    """T^2 * (inter * (1 - Pearson over classes, mean of pixels) + intra * (1 - Pearson over pixels, mean of classes)).

    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, on softmax(logits / T). The second
    part correlates over all valid pixels of the batch (of a process's share and of an accumulated pass), as
    published; a class that the teacher gives the same probability everywhere has nothing to correlate and counts 0.
    """
    p = F.softmax(to_float32(teacher.detach()) / temperature, 1)
    q = F.softmax(to_float32(student) / temperature, 1)
    pixels = 1 - _pearson(q, p, torch.ones_like(p), 1)
    weight = labels.mask.to(p.dtype).unsqueeze(1).expand_as(p)
    flat = (x.transpose(0, 1).flatten(1) for x in (q, p, weight))
    classes = 1 - _pearson(*flat, 1)
    return temperature**2 * (inter * masked_mean(pixels, labels) + intra * classes.mean() * labels.mask.any())


def _pearson(x: Tensor, y: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Correlation of x and y along `axis` where weight is 1; 1 where y varies by no more than rounding."""
    count = weight.sum(axis, keepdim=True).clamp(min=1)
    mean_x, mean_y = ((v * weight).sum(axis, keepdim=True) / count for v in (x, y))
    x, y = (x - mean_x) * weight, (y - mean_y) * weight
    finfo = torch.finfo(x.dtype)
    rounding = count * (16 * finfo.eps * mean_y).square()
    spread = y.square().sum(axis)
    norms = (x.square().sum(axis) + finfo.tiny**0.5).sqrt() * (spread + finfo.tiny**0.5).sqrt()
    return torch.where(spread > rounding.squeeze(axis), (x * y).sum(axis) / norms, 1)
