"""Training augmentation: one affine warp from the source image straight to the crop."""

import cv2
import numpy as np
from numpy.typing import NDArray

from model.labels import reserved_labels
from util.keys import Data, Train

BLUR = 5  # kernel side of the Gaussian blur, in pixels, as in semseg


class Augment:
    """Random scale, rotation, crop, flip and blur, in semseg's order, by one resampling.

    Scale: uniform in [scale_min, scale_max]. Rotation: about the centre, uniform in [rotate_min,
    rotate_max] degrees, with probability rotate_prob. Crop: uniform over the positions inside; what
    is smaller than the crop is centred. What lies outside the image is the mean colour, and in the
    label the marker of padding: it is kept apart from ignore_label, since a teacher can teach where
    people did not label.
    """

    def __init__(self, data: Data, train: Train):
        self.train = train
        self.mean = tuple(round(value) for value in data.mean)
        self.padding, _ = reserved_labels(train.ignore_label)
        self.mirrored = np.arange(256, dtype=np.uint8)
        self.mirrored[: data.classes] = mirrored_classes(data)

    def matrix(self, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the 2x3 matrix that takes source pixel coordinates (x, y) to those of the crop."""
        t = self.train
        scale = rng.uniform(t.scale_min, t.scale_max)
        angle = rng.uniform(t.rotate_min, t.rotate_max) if rng.random() < t.rotate_prob else 0.0
        flip = rng.random() < t.flip_prob
        size = np.maximum(np.round(scale * np.array([width, height])), 1)
        room = size - (t.train_w, t.train_h)
        offset = np.where(room > 0, np.floor(rng.random(2) * (room + 1)), -((-room) // 2))
        # Pixel centres lie at half-integers, as in cv2.resize: x' = (x + 0.5) * scale - 0.5.
        resize = size / (width, height)
        affine = np.array([[resize[0], 0, 0.5 * resize[0] - 0.5], [0, resize[1], 0.5 * resize[1] - 0.5], [0, 0, 1]])
        if angle:
            turn = cv2.getRotationMatrix2D(tuple((size - 1) / 2), angle, 1)
            affine = np.vstack([turn, [0, 0, 1]]) @ affine
        affine[:2, 2] -= offset
        if flip:
            affine[0] = [0, 0, t.train_w - 1] - affine[0]
        return affine[:2]

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """image (H, W, 3), label (H, W) -> (train_h, train_w, 3), (train_h, train_w)."""
        t = self.train
        matrix = self.matrix(*label.shape, rng)
        size = (t.train_w, t.train_h)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # OpenCV warps four channels in half the time of three
        image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=self.mean)
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
        label = cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=self.padding)
        if np.linalg.det(matrix[:, :2]) < 0:
            label = cv2.LUT(label, self.mirrored)
        if rng.random() < t.blur_prob:
            image = cv2.GaussianBlur(image, (BLUR, BLUR), 0)
        return image, label


def mirrored_classes(data: Data) -> list[int]:
    """The class that each class becomes in a mirrored image: DATA.flip_pairs change places."""
    partner = {a: b for pair in data.flip_pairs for a, b in (pair, pair[::-1])}
    return [partner.get(index, index) for index in range(data.classes)]
