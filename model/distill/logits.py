"""Distillation losses on class scores."""

import torch.nn.functional as F
from torch import Tensor

from model.loss import Labels, masked_mean


def kl(student: Tensor, teacher: Tensor, labels: Labels, temperature: float) -> Tensor:
    """T^2 * mean over valid pixels of KL(softmax(teacher / T) || softmax(student / T)), summed over classes.

    student, teacher: logits (N, C, h, w); labels on the same (h, w). No gradient reaches the teacher.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; per pixel in Liu et al., CVPR 2019.
    The factor T^2 keeps the gradient's size when T changes.
    """
    log_p = F.log_softmax(teacher.detach().float() / temperature, 1)
    log_q = F.log_softmax(student.float() / temperature, 1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    return temperature**2 * masked_mean(divergence, labels)
