"""Distillation losses on feature maps."""

from torch import Tensor

from model.loss import Labels, masked_mean


def mse(student: Tensor, teacher: Tensor, labels: Labels) -> Tensor:
    """Mean over valid positions and channels of (student - teacher)^2; maps of equal shape (N, C, h, w).

    On the auxiliary outputs this is the project's own feature term. No gradient reaches the teacher.
    """
    return masked_mean((student.float() - teacher.detach().float()).square().mean(1), labels)
