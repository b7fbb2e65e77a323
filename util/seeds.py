"""Independent random streams, by purpose and integers such as (seed, epoch, index)."""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a stream is for; it stands first in the key, so that no two purposes share one."""

    INIT = 1
    DROPOUT = 2
    ORDER = 3
    UNLABELLED_ORDER = 4
    AUGMENT = 5


def generator(stream: Stream, *keys: int) -> np.random.Generator:
    """NumPy pads short keys with zeros: those of one stream must be equally many."""
    return np.random.default_rng((int(stream), *keys))


def seed_torch(stream: Stream, *keys: int) -> None:
    torch.manual_seed(int(generator(stream, *keys).integers(2**63)))
