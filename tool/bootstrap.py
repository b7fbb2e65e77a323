"""Intervals for mIoU by the bootstrap over images (Efron, 1979): what another draw of images might have given."""

import numpy as np
from numpy.typing import NDArray

from tool.runs import HIT, PREDICTED, TRUTH

LEVEL = 0.95


def resampled_iou(pixels: NDArray[np.int64], resamples: int, seed: int = 0) -> NDArray[np.float64]:
    """IoU of each class in `resamples` draws of as many images, with replacement, the same draws for every run.

    pixels: (runs, images, 3 kinds, classes) -> (resamples, runs, classes). A class that a draw lacks is NaN there, so
    that it does not pull that draw's mean down; one that all images lack is 0, as it is in metrics.json.
    """
    runs, images, kinds, classes = pixels.shape
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples).astype(np.float64)
    result = np.empty((resamples, runs, classes))
    for r in range(runs):
        counts = (draws @ pixels[r].reshape(images, -1)).reshape(resamples, kinds, classes)
        union = counts[:, TRUTH] + counts[:, PREDICTED] - counts[:, HIT]
        result[:, r] = np.where(union > 0, counts[:, HIT] / np.maximum(union, 1), np.nan)
        result[:, r, pixels[r, :, TRUTH:].sum((0, 1)) == 0] = 0
    return result


def interval(values: NDArray[np.float64]) -> list[float]:
    """The percentiles that hold the middle LEVEL of `values` (resamples,); NaN and infinity do not count."""
    return np.percentile(values[np.isfinite(values)], [50 * (1 - LEVEL), 50 * (1 + LEVEL)]).tolist()
