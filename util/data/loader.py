"""From lists to batches: which images a step takes, and the processes that make crops of them."""

import functools
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, Sampler, default_convert, get_worker_info
from tqdm import tqdm

from model.labels import reserved_labels
from util import distributed, seeds
from util.data.batch import CachedOutputs, Key
from util.data.decode import read_image
from util.data.lists import read_list, read_pair
from util.data.transform import Augment
from util.errors import UserError
from util.keys import Data, Train

SHM = "/dev/shm"


class TrainData(Dataset):
    """Augmented crops by key (epoch, index), each a function of (seed, epoch, index) alone.

    Indices from `labelled` on are the images of DATA.unlabelled_list, `unlabelled` in number. An
    item is image (train_h, train_w, 3), label (train_h, train_w) and, with a `cache` (any object
    with read(key, crop)), the teacher's outputs; or the fault of a file.
    """

    def __init__(self, data: Data, train: Train, seed: int, cache: Any = None):
        self.data, self.train, self.seed, self.cache = data, train, seed, cache
        self.augment = Augment(data, train)
        self.pairs = read_list(data.train_list, "DATA.train_list", data.data_root) if data.train_list else []
        self.labelled = len(self.pairs)
        if data.unlabelled_list:
            self.pairs += read_list(data.unlabelled_list, "DATA.unlabelled_list", data.data_root, labelled=False)
        self.unlabelled = len(self.pairs) - self.labelled

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> tuple[NDArray[np.uint8], NDArray[np.uint8], CachedOutputs | None] | UserError:
        epoch, index = key
        pair = self.pairs[index]
        try:
            if pair.label is None:
                image = read_image(pair.image, self.data.image_max)
                label = np.full(image.shape[:2], reserved_labels(self.train.ignore_label)[1], np.uint8)
            else:
                image, label = read_pair(pair, self.data, self.train.ignore_label)
        except UserError as error:  # raised in a worker it would come back wrapped in the worker's traceback
            return error
        random = seeds.generator(seeds.Stream.AUGMENT, self.seed, epoch, index)
        image, label = self.augment(image, label, random)
        return image, label, self.cache and self.cache.read(key, image)


class ResumableBatchSampler(Sampler[list[Key]]):
    """Yields this process's keys (epoch, index) for each step from `start` on, over all epochs.

    Every epoch is a permutation of the labelled images drawn from (seed, epoch); the last ones that
    do not fill a batch are left out. The unlabelled images come in an endless sequence of
    permutations, independent of the labelled ones, TRAIN.unlabelled_per_batch a step; where there
    are no labelled ones, they make the epochs instead. The keys are in such an order that each of
    TRAIN.accumulate equal parts has its share of both. Raises UserError when an epoch's images do
    not fill a batch.
    """

    def __init__(self, data: TrainData, start: int = 0):
        self.data, self.train, self.start = data, data.train, start
        train = data.train
        self.images = data.labelled or data.unlabelled  # of an epoch
        self.per_epoch = self.images // train.batch_size
        self.steps = train.epochs * self.per_epoch
        self.crops = self.steps * train.images_per_step  # of the whole run, all processes
        if not self.per_epoch:
            raise UserError(
                f"{data.data.epoch_list[0]} has {self.images} images, fewer than TRAIN.batch_size {train.batch_size}; "
                "lower that, or list images more than once"
            )

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        seed, images, parts = self.data.seed, self.images, self.train.accumulate

        @functools.lru_cache(4)  # two streams; a batch may span two permutations
        def order(stream: seeds.Stream, images: int, row: int) -> NDArray[np.int64]:
            return seeds.generator(stream, seed, row).permutation(images)

        def keys(stream: seeds.Stream, images: int, row_length: int, count: int, step: int, first: int) -> list[Key]:
            """`count` keys of `step`: permutations of `images`, `row_length` of each, from `first`."""
            places = (divmod(place, row_length) for place in range(step * count, (step + 1) * count))
            return [(row, first + int(order(stream, images, row)[place])) for row, place in places]

        size, unlabelled, more = self.train.batch_size, self.data.unlabelled, self.train.unlabelled_per_batch
        own = slice(distributed.rank(), None, distributed.world_size())
        for step in range(self.start, self.steps):
            kinds = (
                keys(seeds.Stream.ORDER, images, self.per_epoch * size, size, step, 0)[own],
                keys(seeds.Stream.UNLABELLED_ORDER, unlabelled, unlabelled, more, step, images)[own],
            )
            yield [
                key
                for part in range(parts)
                for kind in kinds
                for key in kind[part * len(kind) // parts : (part + 1) * len(kind) // parts]
            ]


def collate(samples: list) -> tuple[Tensor, Tensor, CachedOutputs | None] | UserError:
    for item in samples:
        if isinstance(item, UserError):
            return item
    images, labels, cached = zip(*samples, strict=True)
    images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in (images, labels))
    return images, labels, CachedOutputs.collate(cached) if cached[0] else None


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # Signals often reach every process of a job, but are meant for the one that the workers serve:
    # it finishes the step, and needs them. Only its own SIGTERM counts, which ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS: there, a SIGTERM to the whole job ends its workers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = multiprocessing.parent_process().pid
        threading.Thread(target=_exit_on_parents_sigterm, args=(parent,), daemon=True).start()


def _exit_on_parents_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class InSharedMemory:
    """`collate`, and in a worker the result in shared memory at once.

    Left to the queue's thread, as PyTorch does it, a full /dev/shm would end the worker's sending in
    silence, and the run would wait for ever.
    """

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        item = self.collate(samples)
        if get_worker_info() is None:
            return item
        try:
            tree_map_only(Tensor, Tensor.share_memory_, item)
        except (RuntimeError, OSError):
            return UserError(shm_too_small())
        return item


def shm_too_small() -> str:
    size = shutil.disk_usage(SHM).total if Path(SHM).is_dir() else 0
    return (
        f"{SHM}, where processes that load images leave their batches, is too small ({size / 1e6:.1f} MB in all); "
        "start the container with --shm-size 2g (or --ipc host), or lower TRAIN.workers"
    )


def build_loader(data: Dataset, workers: int, collate_fn: Callable = default_convert, **options) -> DataLoader:
    """A DataLoader that keeps the global random state and pins memory where there is a GPU.

    More workers than cores would only wait for each other, each with its batches in memory.
    """
    return DataLoader(
        data,
        num_workers=min(workers, os.cpu_count() or 1),
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        collate_fn=InSharedMemory(collate_fn),
        **options,
    )


def train_loader(data: TrainData, sampler: ResumableBatchSampler, workers: int) -> DataLoader:
    return build_loader(data, workers, batch_sampler=sampler, collate_fn=collate)


def progress(items: Iterable, title: str) -> Iterable:
    """`items` with a progress bar, where the main process prints to a terminal."""
    return tqdm(items, title, leave=False, disable=None if distributed.is_main() else True)
