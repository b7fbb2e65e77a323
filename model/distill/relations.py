"""Distillation losses on similarities between positions: student and teacher (N, C, h, w), channels may differ.

labels, on the same (h, w), say where the term counts. No gradient reaches the teacher. Memory is stated for a
473x473 crop: h = w = 60.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.labels import LABELS, Labels
from model.loss import masked_mean, to_float32


def pairwise(student: Tensor, teacher: Tensor, labels: Labels, *, patch: PositiveInt = 2) -> Tensor:
    """Mean squared difference of the two images of cosine similarity between all pairs of an image's patches.

    Patches of patch x patch positions are max-pooled. Liu et al., "Structured Knowledge Distillation for Semantic
    Segmentation", CVPR 2019, weight 10. Memory: four maps of 900 x 900 floats an image, 13 MB.
    """
    mask = F.max_pool2d(labels.mask.unsqueeze(1).float(), patch, ceil_mode=True).flatten(2) > 0  # (N, 1, P)

    def similarity(features: Tensor) -> Tensor:
        valid = to_float32(features).masked_fill(~labels.mask.unsqueeze(1), -torch.inf)
        pooled = F.max_pool2d(valid, patch, ceil_mode=True).flatten(2)
        unit = F.normalize(pooled.masked_fill(~mask, 0), dim=1)
        return unit.transpose(1, 2) @ unit

    pairs = mask.sum(2).square().squeeze(1)
    difference = (similarity(student) - similarity(teacher.detach())).square()  # 0 where a patch is masked
    return (difference.sum((1, 2)) / pairs.clamp(min=1)).mean()


def ifv(student: Tensor, teacher: Tensor, labels: Labels) -> Tensor:
    """Mean over labelled positions of the squared difference of cos(feature, mean feature of its class in its image).

    Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020, weight 20. Needs
    labels. Memory: three maps of the features' size for each network, and 256 x C floats an image.
    """
    image = torch.arange(len(labels.label), device=labels.label.device).view(-1, 1, 1)
    bins = (image * LABELS + labels.label.where(labels.mask, LABELS - 1)).flatten()  # no class is the last value

    def similarity(features: Tensor) -> Tensor:
        flat = to_float32(features).permute(0, 2, 3, 1).flatten(0, 2)
        sums = flat.new_zeros(len(features) * LABELS, flat.shape[1]).index_add(0, bins, flat)
        counts = flat.new_zeros(len(sums)).index_add(0, bins, torch.ones_like(flat[:, 0]))
        means = sums / counts.clamp(min=1).unsqueeze(1)
        return F.cosine_similarity(flat, means.index_select(0, bins), dim=1).view_as(labels.label)

    return masked_mean((similarity(student) - similarity(teacher.detach())).square(), labels)


def cirkd(
    student: Tensor, teacher: Tensor, labels: Labels, *, temperature: PositiveFloat = 0.1, patch: PositiveInt = 2
) -> Tensor:
    """Mean over ordered image pairs, and positions of the first image, of KL(teacher || student) between similarities.

    The similarities of a position: softmax over the second image's positions of cosine / T. Yang et al., "Cross-Image
    Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022, the mini-batch part, weight 1. Patches of
    patch x patch positions are averaged first; the published code does so on grids of 256 and more, by 4, and equals
    patch 1 on smaller ones. Exception: a loss across the images of a batch (of a process's share and of an accumulated
    pass), so its value depends on which images meet. Memory: one image against all, recomputed in the backward pass:
    about six maps of 900 x 900 floats an image of the batch, 20 MB an image.
    """
    weight = labels.mask.unsqueeze(1).float()
    count = F.avg_pool2d(weight, patch, ceil_mode=True, divisor_override=1)
    mask = (count > 0).flatten(1)  # (N, P)

    def unit(features: Tensor) -> Tensor:
        inside = to_float32(features).masked_fill(~labels.mask.unsqueeze(1), 0)
        pooled = F.avg_pool2d(inside, patch, ceil_mode=True, divisor_override=1) / count.clamp(min=1)
        return F.normalize(pooled.flatten(2), dim=1)

    s, t = unit(student), unit(teacher.detach())
    rows = [checkpoint(_against_all, s[i], s, t[i], t, mask, temperature, use_reentrant=False) for i in range(len(s))]
    pairs = torch.stack(rows)  # (N, N, P): first image, second image, the first's position
    valid = mask.unsqueeze(1) & mask.any(1).view(1, -1, 1)
    per_pair = torch.where(valid, pairs, 0).sum(2) / valid.sum(2).clamp(min=1)
    return per_pair.mean()


def _against_all(s: Tensor, all_s: Tensor, t: Tensor, all_t: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """(C, P), (N, C, P) of both networks -> (N, P): KL for each position of the one image against each image."""
    inside = (mask | ~mask.any(1, keepdim=True)).unsqueeze(1)  # a softmax over nothing would be NaN

    def log_similarity(one: Tensor, others: Tensor) -> Tensor:
        cosine = one.transpose(0, 1) @ others  # (N, P, P)
        return F.log_softmax((cosine / temperature).masked_fill(~inside, -torch.inf), 2)

    log_p, log_q = log_similarity(t, all_t), log_similarity(s, all_s)
    return (log_p.exp() * (log_p - log_q).masked_fill(~inside, 0)).sum(2)
