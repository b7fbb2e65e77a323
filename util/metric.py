"""The confusion matrix and the scores that follow from it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 counts, rows truth, columns prediction, of the pixels whose label is a class.

    prediction, label: integer tensors of one shape. Any label outside 0 .. classes - 1 is void.
    """
    label, prediction = label.long(), prediction.long()
    valid = (label >= 0) & (label < classes)
    # Void goes to a bin of its own: selecting by mask, and bincount, would each wait for a GPU.
    index = torch.where(valid, label * classes + prediction, classes**2).flatten()
    counts = torch.zeros(classes**2 + 1, dtype=torch.int64, device=label.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:-1].view(classes, classes)


class Scores(NamedTuple):
    """Fractions from 0 to 1. A class in neither truth nor prediction counts 0 in the means, as in semseg."""

    mIoU: float
    mAcc: float
    allAcc: float
    iou: list[float]
    accuracy: list[float]
    absent: list[int]

    @classmethod
    def of(cls, matrix: Tensor) -> "Scores":
        counts = matrix.cpu().numpy().astype(np.float64)
        hit, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        union = truth + predicted - hit
        iou = hit / np.maximum(union, 1)
        accuracy = hit / np.maximum(truth, 1)
        all_acc = hit.sum() / max(truth.sum(), 1)
        absent = np.flatnonzero(union == 0).tolist()
        return cls(float(iou.mean()), float(accuracy.mean()), float(all_acc), iou.tolist(), accuracy.tolist(), absent)
