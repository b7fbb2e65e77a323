"""Intervals for mIoU by the bootstrap over images (Efron, 1979)."""

import numpy as np
from numpy.typing import NDArray

from tool.report.runs import HIT, PREDICTED, TRUTH

LEVEL = 0.95


def draw(images: int, resamples: int, block: int = 1, seed: int = 0) -> NDArray[np.float64]:
    """(resamples, images): how often each image is in a sample of `images`, with replacement.

    block: consecutive images that are drawn together, since neighbours in a video are not
    independent; the list continues at its beginning (circular block bootstrap, Politis and Romano,
    1992).
    """
    rng = np.random.default_rng(seed)
    if block == 1:
        return rng.multinomial(images, np.full(images, 1 / images), resamples).astype(np.float64)
    starts = rng.integers(0, images, (resamples, -(-images // block)))
    drawn = ((starts[..., None] + np.arange(block)) % images).reshape(resamples, -1)[:, :images]
    return np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.float64)


def resampled_iou(pixels: NDArray[np.int64], resamples: int, block: int = 1, seed: int = 0) -> NDArray[np.float64]:
    """IoU of each class in `resamples` samples of the images, the same for every run.

    pixels: (runs, images, 3 kinds, classes) -> (resamples, runs, classes). block: see `draw`. A
    class that is absent from a sample is NaN there, so that it does not lower that sample's mean;
    one that is absent from all images is 0, as in metrics.json.
    """
    runs, images, kinds, classes = pixels.shape
    draws = draw(images, resamples, block, seed)
    result = np.empty((resamples, runs, classes))
    for r in range(runs):
        counts = (draws @ pixels[r].reshape(images, -1)).reshape(resamples, kinds, classes)
        union = counts[:, TRUTH] + counts[:, PREDICTED] - counts[:, HIT]
        result[:, r] = np.where(union > 0, counts[:, HIT] / np.maximum(union, 1), np.nan)
        result[:, r, pixels[r, :, TRUTH:].sum((0, 1)) == 0] = 0
    return result


def interval(values: NDArray[np.float64]) -> list[float]:
    """[low, high] around the middle LEVEL of `values` (resamples,), without NaN and infinity."""
    return np.percentile(values[np.isfinite(values)], [50 * (1 - LEVEL), 50 * (1 + LEVEL)]).tolist()
