"""The confusion matrix, the scores that follow from it, and the running metrics of an epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from util import distributed
from util.errors import UserError

NO_STEP = 2**62  # a step that no run reaches


def confusion_matrix(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 counts of the pixels whose label is a class, [truth, prediction].

    prediction, label: integer tensors of one shape. Any label outside 0 .. classes - 1 is void.
    """
    label, prediction = label.long(), prediction.long()
    valid = (label >= 0) & (label < classes)
    # Void goes to a bin of its own: selecting by mask, and bincount, would each wait for a GPU.
    index = torch.where(valid, label * classes + prediction, classes**2).flatten()
    counts = torch.zeros(classes**2 + 1, dtype=torch.int64, device=label.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:-1].view(classes, classes)


def iou(hit: NDArray, truth: NDArray, predicted: NDArray) -> NDArray[np.float64]:
    """Intersection over union from counts; 0 for a class in neither truth nor prediction."""
    return hit / np.maximum(truth + predicted - hit, 1)


class Scores(NamedTuple):
    """Fractions from 0 to 1. A class in neither truth nor prediction counts 0, as in semseg."""

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


class EpochMetrics:
    """Running sums of an epoch, on the device: each term, their total `loss`, the confusion matrix.

    names: of the terms. Nothing waits for the device before `means` is called.
    """

    def __init__(self, names: Sequence[str], classes: int, device: torch.device):
        self.names, self.classes, self.device = [*names, "loss"], classes, device
        self.reset()

    def reset(self) -> None:
        self.sums, self.steps, self.lr = torch.zeros(len(self.names), device=self.device), 0, 0.0
        self.first_nonfinite_step = torch.full((len(self.names),), NO_STEP, device=self.device)
        self.matrix = torch.zeros(self.classes, self.classes, dtype=torch.int64, device=self.device)
        self.shares: dict[str, float] = {}

    def add(
        self, terms: Mapping[str, Tensor], total: Tensor, share: float, logits: Tensor, label: Tensor, step: int
    ) -> None:
        """A forward pass, `share` of a step: terms, logits (N, C, h, w) and label (N, h, w)."""
        values = torch.stack([*(terms[name].detach() for name in self.names[:-1]), total.detach()])
        self.sums += values * share
        later = self.first_nonfinite_step.clamp(max=step + 1)
        self.first_nonfinite_step = torch.where(values.isfinite(), self.first_nonfinite_step, later)
        self.matrix += confusion_matrix(logits.detach().argmax(1), label, self.classes)

    def means(self, where: str) -> dict[str, float]:
        """Mean of each term over the epoch's steps so far and all processes; a collective.

        Raises UserError when one is not finite, naming the first step and its terms.
        """
        sums = distributed.all_reduce(self.sums.clone()) / distributed.world_size()
        means = dict(zip(self.names, (sums / self.steps).tolist(), strict=True))
        if not all(math.isfinite(value) for value in means.values()):
            first = distributed.all_reduce(self.first_nonfinite_step.clone(), dist.ReduceOp.MIN).tolist()
            names = [name for name, step in zip(means, first, strict=True) if step == min(first)]
            raise UserError(
                f"not finite: {', '.join(names)}, in step {min(first)} (found by {where}); lower TRAIN.base_lr or set "
                "TRAIN.precision to fp32 and start again in another TRAIN.save_path; the checkpoints here are from "
                "before"
            )
        return means

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, summed over all processes; a collective."""
        sums, matrix = distributed.all_reduce(self.sums.clone()), distributed.all_reduce(self.matrix.clone())
        return {
            "sums": sums.cpu(),
            "matrix": matrix.cpu(),
            "steps": self.steps,
            "lr": self.lr,
            "shares": self.shares,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises UserError when it is of other terms or classes."""
        if state["sums"].shape != self.sums.shape or state["matrix"].shape != self.matrix.shape:
            raise UserError("the checkpoint's running sums are of other terms; remove it to go on from the one before")
        self.steps, self.lr, self.shares = state["steps"], state["lr"], state["shares"]
        if distributed.is_main():  # the other processes go on from zero: their sum is what counts
            self.sums += state["sums"].to(self.device)
            self.matrix += state["matrix"].to(self.device)
