"""The confusion matrix and the scores that follow from it."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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


def iou(hit: NDArray, truth: NDArray, predicted: NDArray) -> NDArray[np.float64]:
    """Intersection over union from counts of pixels; 0 where a class is in neither truth nor prediction."""
    return hit / np.maximum(truth + predicted - hit, 1)


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
        per_class = iou(hit, truth, predicted)
        accuracy = hit / np.maximum(truth, 1)
        all_acc = hit.sum() / max(truth.sum(), 1)
        absent = np.flatnonzero(truth + predicted == 0).tolist()
        means = (float(value) for value in (per_class.mean(), accuracy.mean(), all_acc))
        return cls(*means, per_class.tolist(), accuracy.tolist(), absent)
