"""From the lists to batches: which images a step takes, and the processes that make crops of them."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.labels import reserved_labels
from util import distributed
from util.config import Config
from util.data.decode import read_image
from util.data.lists import read_list, read_pair
from util.data.transform import Augment
from util.errors import UserError
from util.keys import Train
from util.train.teacher_cache import CachedOutputs, TeacherCache


class TrainData(Dataset):
    """Augmented crops. A key is (epoch, index), and a crop is a function of (seed, epoch, index) alone.

    Indices from `labelled` on are the images of DATA.unlabelled_list, `unlabelled` in number. An item is image, label
    and, with a `cache`, what that knows of the crop; or the fault in the files.
    """

    def __init__(self, cfg: Config, seed: int, cache: TeacherCache | None = None):
        data = cfg.data
        self.cfg, self.seed, self.augment, self.cache = cfg, seed, Augment(cfg), cache
        where = {"root": data.data_root, "allow_outside": data.allow_outside}
        self.pairs = read_list(data.train_list, "DATA.train_list", **where)
        self.labelled = len(self.pairs)
        if data.unlabelled_list:
            self.pairs += read_list(data.unlabelled_list, "DATA.unlabelled_list", **where, labelled=False)
        self.unlabelled = len(self.pairs) - self.labelled

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(
        self, key: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], CachedOutputs | None] | UserError:
        epoch, index = key
        pair = self.pairs[index]
        try:
            if pair.label is None:
                image = read_image(pair.image)
                label = np.full(image.shape[:2], reserved_labels(self.cfg.train.ignore_label)[1], np.uint8)
            else:
                image, label = read_pair(pair, self.cfg)
        except UserError as error:  # raised in a worker it would come back wrapped in the worker's traceback
            return error
        image, label = self.augment(image, label, np.random.default_rng((self.seed, epoch, index)))
        return image, label, self.cache and self.cache.read(key, image)


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields this process's keys (epoch, index) for each step from `start` on, over all epochs.

    Every epoch is a permutation of the labelled images drawn from (seed, epoch); the last ones that do not fill a batch
    sit out. The unlabelled images come in an endless row of permutations of their own, TRAIN.unlabelled_per_batch a
    step. The keys are in such an order that each of TRAIN.accumulate equal parts has its share of both. Raises
    UserError when the labelled images do not fill a batch.
    """

    def __init__(self, data: TrainData, train: Train, start: int = 0):
        self.data, self.train, self.start = data, train, start
        self.per_epoch = data.labelled // train.batch_size
        self.steps = train.epochs * self.per_epoch
        self.crops = self.steps * (train.batch_size + train.unlabelled_per_batch)  # of the whole run, all processes
        if not self.per_epoch:
            raise UserError(
                f"{data.cfg.data.train_list} has {data.labelled} images, fewer than TRAIN.batch_size {train.batch_size}"
            )

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        seed, labelled, parts = self.data.seed, self.data.labelled, self.train.accumulate

        @functools.lru_cache(4)  # of both kinds: the row at hand, and the next one where a batch reaches into it
        def order(images: int, row: int, *stream: int) -> NDArray[np.int64]:
            return np.random.default_rng((seed, row, *stream)).permutation(images)

        def keys(images: int, row_length: int, count: int, step: int, first: int, *stream: int):
            """`count` keys of this step, from rows of `row_length` out of `images`."""
            places = (divmod(place, row_length) for place in range(step * count, (step + 1) * count))
            return [(row, first + int(order(images, row, *stream)[place])) for row, place in places]

        rank, processes = distributed.rank(), distributed.world_size()
        for step in range(self.start, self.steps):
            batch = keys(labelled, self.per_epoch * self.train.batch_size, self.train.batch_size, step, 0)
            more = keys(self.data.unlabelled, self.data.unlabelled, self.train.unlabelled_per_batch, step, labelled, 1)
            shares = [
                [kind[part * len(kind) // parts : (part + 1) * len(kind) // parts] for part in range(parts)]
                for kind in (batch[rank::processes], more[rank::processes])
            ]
            yield [key for part in zip(*shares, strict=True) for kind in part for key in kind]


def collate(samples: list) -> tuple[Tensor, Tensor, CachedOutputs | None] | UserError:
    for item in samples:
        if isinstance(item, UserError):
            return item
    images, labels, kept = zip(*samples, strict=True)
    images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in (images, labels))
    return images, labels, CachedOutputs.joined(kept) if kept[0] else None


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # Signals often reach every process of a job, but are meant for the one that the workers serve: it finishes the
    # step, and needs them. Only the SIGTERM by which that one ends its workers counts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_parents_sigterm, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _exit_on_parents_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def build_loader(data: Dataset, workers: int, **options) -> DataLoader:
    """A DataLoader that leaves the global random state alone and pins memory where there is a GPU."""
    return DataLoader(
        data,
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        **options,
    )


def train_loader(data: TrainData, sampler: ResumableBatchSampler, workers: int) -> DataLoader:
    return build_loader(data, workers, batch_sampler=sampler, collate_fn=collate)
