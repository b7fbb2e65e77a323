"""Independent random streams, by purpose and integers such as (seed, epoch, index)."""

from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist

from util import distributed


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


def of_run(manual_seed: int | None) -> int:
    """TRAIN.manual_seed, or one drawn by the first process for all."""
    drawn = [manual_seed if manual_seed is not None else torch.seed() % 2**31]
    if distributed.world_size() > 1:
        dist.broadcast_object_list(drawn)
    return drawn[0]


def seed_torch(stream: Stream, *keys: int) -> None:
    torch.manual_seed(int(generator(stream, *keys).integers(2**63)))
