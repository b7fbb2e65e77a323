"""How an image becomes labels in testing and in validation, and the images at its scales."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from util.config import Config, Data
from util.data.decode import read_image
from util.data.lists import Pair, read_pair
from util.errors import UserError


class Protocol(NamedTuple):
    """How an image is turned into labels."""

    base_size: int  # the longer side at scale 1, in pixels
    scales: list[float]
    flip: bool  # average with the mirrored image
    mode: str  # slide: windows of the crop's size; whole: the image at once
    crop: tuple[int, int]  # height, width of a window
    batch_size: int  # windows a forward pass


def protocol_for_testing(cfg: Config) -> Protocol:
    t = cfg.test
    return Protocol(t.base_size, t.scales, t.flip, t.mode, (t.test_h, t.test_w), cfg.train.batch_size_val)


def protocol_for_validation(cfg: Config) -> Protocol:
    """Validation while training: whole images at TEST.base_size, without flip."""
    return protocol_for_testing(cfg)._replace(scales=[1.0], flip=False, mode="whole")


def resize(image: NDArray[np.float32], scale: float, base_size: int) -> NDArray[np.float32]:
    """Make the longer side round(scale * base_size), and round half to even, as semseg does."""
    height, width = image.shape[:2]
    long_side = round(scale * base_size)
    new_h = new_w = long_side
    if height > width:
        new_w = round(long_side / float(height) * width)
    else:
        new_h = round(long_side / float(width) * height)
    return cv2.resize(image, (max(new_w, 1), max(new_h, 1)), interpolation=cv2.INTER_LINEAR)


class ScaledImages(Dataset):
    """Each image at every scale, in float32, since rounding would change labels; and its label."""

    def __init__(self, pairs: list[Pair], protocol: Protocol, data: Data, ignore_label: int):
        self.pairs, self.protocol, self.data, self.ignore_label = pairs, protocol, data, ignore_label

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        """-> index, (height, width), image (h, w, 3) at each scale, label or None; or a fault."""
        pair, p = self.pairs[index], self.protocol
        try:
            if pair.label is None:
                image, label = read_image(pair.image, self.data.image_max), None
            else:
                image, label = read_pair(pair, self.data, self.ignore_label)
        except UserError as error:
            return error
        scaled = [torch.from_numpy(resize(image.astype(np.float32), scale, p.base_size)) for scale in p.scales]
        return index, image.shape[:2], scaled, None if label is None else torch.from_numpy(label.copy())
