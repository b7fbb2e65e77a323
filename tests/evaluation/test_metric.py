"""Scores against a plain computation, pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from util.evaluate.metric import Scores, confusion_matrix

CLASSES = 4
values = arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 1, 2, 3, 255]))
predictions = arrays(np.uint8, (3, 5), elements=st.integers(0, CLASSES - 1))


def plainly(prediction, label):
    """IoU and accuracy a class, and pixel accuracy, by the definitions; void pixels are taken out first."""
    pixels = [(p, y) for p, y in zip(prediction.ravel(), label.ravel(), strict=True) if y < CLASSES]
    iou, accuracy = [], []
    for c in range(CLASSES):
        hit = sum(p == y == c for p, y in pixels)
        union = sum(p == c or y == c for p, y in pixels)
        truth = sum(y == c for _, y in pixels)
        iou.append(hit / union if union else 0)
        accuracy.append(hit / truth if truth else 0)
    return iou, accuracy, sum(p == y for p, y in pixels) / max(len(pixels), 1)


@given(prediction=predictions, label=values)
@settings(max_examples=100, deadline=None)
def test_scores(prediction, label):
    scores = Scores.of(confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(label), CLASSES))
    iou, accuracy, all_acc = plainly(prediction, label)
    assert scores.iou == pytest.approx(iou)
    assert scores.accuracy == pytest.approx(accuracy)
    assert scores.allAcc == pytest.approx(all_acc)
    assert scores.mIoU == pytest.approx(np.mean(iou))
    assert scores.mAcc == pytest.approx(np.mean(accuracy))


def test_golden():
    label = torch.tensor([[0, 0, 1, 1, 2, 255]])
    prediction = torch.tensor([[0, 1, 1, 1, 0, 3]])
    scores = Scores.of(confusion_matrix(prediction, label, 4))
    assert scores.iou == pytest.approx([1 / 3, 2 / 3, 0, 0])
    assert scores.allAcc == pytest.approx(3 / 5)
    assert scores.absent == [3]


def test_void_next_to_the_classes_does_not_become_the_last_class():
    # CamVid: 11 classes, void 11. np.histogram's closed last bin counts such pixels as class 10.
    label = torch.tensor([[0, 11, 11]])
    matrix = confusion_matrix(torch.tensor([[0, 10, 3]]), label, 11)
    assert matrix.sum() == 1 and matrix[0, 0] == 1
