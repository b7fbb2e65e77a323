"""Distillation losses on feature maps: student and teacher (N, C, h, w), labels on the same (h, w).

labels.mask says where the term counts. Where channels or sizes differ, an adapter (model/distill/adapters.py) gives the
student's map the teacher's shape. No gradient reaches the teacher.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from model.labels import Labels
from model.loss import masked_mean, to_float32


def mse(student: Tensor, teacher: Tensor, labels: Labels) -> Tensor:
    """Mean over valid positions and channels of (student - teacher)^2.

    On the auxiliary outputs this is the project's own aux_mse; through a 1x1 convolution it is a hint of Romero et
    al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (fitnet); through a generator that sees a part of the student's
    map it is Yang et al., "Masked Generative Distillation", ECCV 2022 (mgd), there summed over C*h*w with weight 2e-5:
    as a mean that weight is 42 for 512 channels at 64x64.
    """
    return masked_mean((to_float32(student) - to_float32(teacher.detach())).square().mean(1), labels)


def nfd(student: Tensor, teacher: Tensor, labels: Labels) -> Tensor:
    """mse of maps of which each channel is standardised over its image's valid positions: from 0 to 4 or so.

    Liu et al., "Normalized Feature Distillation for Semantic Segmentation", arXiv 2207.05256: the student need not
    match the magnitude of the teacher's features. A channel that is constant in an image counts as 0 there.
    """
    mask = labels.mask.unsqueeze(1)
    count = mask.sum((2, 3), keepdim=True).clamp(min=1)

    def standardised(features: Tensor) -> Tensor:
        inside = to_float32(features).where(mask, 0)
        centred = (inside - inside.sum((2, 3), keepdim=True) / count).where(mask, 0)
        return centred / (centred.square().sum((2, 3), keepdim=True) / count + 1e-6).sqrt()

    return mse(standardised(student), standardised(teacher), labels)


def at(student: Tensor, teacher: Tensor, labels: Labels) -> Tensor:
    """Mean over images of the sum over positions of (a(student) - a(teacher))^2: from 0 to 2.

    a(F): mean over channels of F^2, l2-normalised over the image's valid positions; channels may differ. Zagoruyko and
    Komodakis, "Paying More Attention to Attention", ICLR 2017. Published as a mean over positions, which shrinks as the
    map grows, with a weight of 1e4; as this sum, the weight is 1e4 / (h*w): 2.8 at 60x60.
    """

    def attention(features: Tensor) -> Tensor:
        energy = torch.where(labels.mask, to_float32(features).square().mean(1), 0)
        return F.normalize(energy.flatten(1), dim=1)

    return (attention(student) - attention(teacher.detach())).square().sum(1).mean()


def cwd(student: Tensor, teacher: Tensor, labels: Labels, *, temperature: PositiveFloat = 4.0) -> Tensor:
    """T^2 * mean over images and channels of KL(softmax over valid positions of teacher / T || of student / T).

    Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021. Published weights: 3 on logits,
    50 on features. An image without a valid position counts 0.
    """
    mask = labels.mask.flatten(1).unsqueeze(1)
    inside = mask | ~mask.any(2, keepdim=True)  # a softmax over nothing would be NaN

    def log_share(features: Tensor) -> Tensor:
        return F.log_softmax((to_float32(features) / temperature).flatten(2).masked_fill(~inside, -torch.inf), 2)

    log_p, log_q = log_share(teacher.detach()), log_share(student)
    divergence = (log_p.exp() * (log_p - log_q).masked_fill(~mask, 0)).sum(2)
    return temperature**2 * divergence.mean()


def attnfd(student: Tensor, teacher: Tensor, labels: Labels) -> Tensor:
    """Mean over images of the squared distance of the attended maps, each l2-normalised as a whole: from 0 to 4.

    Mansourian et al., "Attention-guided Feature Distillation for Semantic Segmentation", 2024. The student's map comes
    through a learned CBAM and a 1x1 convolution with BatchNorm; the teacher's is attended without parameters.
    Exceptions: not zero for equal maps, and attention pools over all positions, the masked ones too.
    """

    def unit(features: Tensor) -> Tensor:
        return F.normalize(torch.where(labels.mask.unsqueeze(1), features, 0).flatten(1), dim=1)

    target = unit(parameter_free_cbam(to_float32(teacher.detach())))
    return (unit(to_float32(student)) - target).square().sum(1).mean()


def parameter_free_cbam(features: Tensor) -> Tensor:
    """CBAM (Woo et al., ECCV 2018) without its learned layers: channels gated by their pools, then positions."""
    features = features * torch.sigmoid(features.mean((2, 3), keepdim=True) + features.amax((2, 3), keepdim=True))
    return features * torch.sigmoid(features.mean(1, keepdim=True) + features.amax(1, keepdim=True))
