"""Lists, decoding, and batches."""

import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.loss import Labels, sample
from util import run
from util.config import Config, Data
from util.errors import UserError
from util.transform import Augment


class Pair(NamedTuple):
    image: Path
    label: Path | None


def read_text(path: str | Path, key: str) -> list[str]:
    """The file's lines, without a byte-order mark or line ends. Raises UserError that names the config key."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        script = Path(path).parent.parent / "prepare.py"
        hint = f"make it with python {script}" if script.is_file() else f"correct {key}"
        raise UserError(f"{path} ({key}) does not exist; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} ({key}) cannot be read as text ({error})") from None


def read_list(path: str, key: str, root: str, labelled: bool = True) -> list[Pair]:
    """The pairs of a list file: `image label` a line (or `image`), relative to `root`; empty lines are skipped.

    key: the config key that named the file, for errors. Raises UserError with file and line when a line has
    another form or a file in it does not exist.
    """
    pairs, where = [], defaultdict(dict)
    for number, line in enumerate(read_text(path, key), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 1 + labelled:
            form = "`image label`" if labelled else "`image`"
            raise UserError(
                f"{path}, line {number}: expected {form} (paths without spaces), found {line.strip()[:120]!r}"
            )
        files = [Path(root, field) for field in fields]
        for file in files:
            where[file.parent].setdefault(file.name, number)
        pairs.append(Pair(files[0], files[1] if labelled else None))
    if not pairs:
        raise UserError(f"{path} ({key}) lists no image")
    for folder, names in where.items():  # one listing a folder: 20,000 look-ups are slow over a network
        present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        for name, number in names.items():
            if name not in present:
                raise UserError(f"{path}, line {number}: {folder / name} does not exist (DATA.data_root is {root})")
    return pairs


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; gray, alpha and 16-bit pictures become 8-bit RGB. Raises UserError for what cannot be decoded."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"image {path} cannot be decoded; replace it or take it out of the list")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path, shape: tuple[int, int], classes: int, ignore_label: int) -> NDArray[np.uint8]:
    """(H, W) class indices of a palette or gray PNG. Raises UserError for another mode, size or value.

    Palette entries are read as indices: converting them to gray would invent class numbers.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise UserError(
                    f"label {path} is a {picture.mode} picture; expected one channel of class indices "
                    "(palette or 8-bit gray PNG)"
                )
            label = np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"label {path} cannot be decoded ({error}); replace it or take it out of the list") from None
    if label.shape != shape:
        raise UserError(f"label {path} is {label.shape[1]}x{label.shape[0]}, its image is {shape[1]}x{shape[0]}")
    values = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    bad = values[(values >= classes) & (values != ignore_label)]
    if bad.size:
        raise UserError(
            f"label {path} holds the value {bad[0]}, neither a class (0 .. {classes - 1}) nor "
            f"TRAIN.ignore_label ({ignore_label})"
        )
    return label


def read_pair(pair: Pair, cfg: Config) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    image = read_image(pair.image)
    return image, read_label(pair.label, image.shape[:2], cfg.data.classes, cfg.train.ignore_label)


def read_names(data: Data) -> list[str]:
    names = [line.strip() for line in read_text(data.names_path, "DATA.names_path") if line.strip()]
    if len(names) != data.classes:
        raise UserError(f"{data.names_path} names {len(names)} classes, DATA.classes is {data.classes}")
    return names


def read_colors(data: Data) -> NDArray[np.uint8]:
    """(256, 3) palette: the file's colours, then black. Each line of the file is `red green blue`."""
    lines = [line.split() for line in read_text(data.colors_path, "DATA.colors_path") if line.strip()]
    try:
        colors = np.array(lines, dtype=np.uint8).reshape(-1, 3)
    except (ValueError, OverflowError):
        raise UserError(f"{data.colors_path}: expected three numbers from 0 to 255 a line") from None
    if not data.classes <= len(colors) <= 256:
        raise UserError(f"{data.colors_path} has {len(colors)} colours, DATA.classes is {data.classes}")
    return np.vstack([colors, np.zeros((256 - len(colors), 3), np.uint8)])


class TrainData(Dataset):
    """Augmented crops. A key is (epoch, index), and a crop is a function of (seed, epoch, index) alone."""

    def __init__(self, cfg: Config, seed: int):
        self.cfg, self.seed, self.augment = cfg, seed, Augment(cfg)
        self.pairs = read_list(cfg.data.train_list, "DATA.train_list", cfg.data.data_root)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | UserError:
        epoch, index = key
        try:
            image, label = read_pair(self.pairs[index], self.cfg)
        except UserError as error:  # raised in a worker it would come back wrapped in the worker's traceback
            return error
        return self.augment(image, label, np.random.default_rng((self.seed, epoch, index)))


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yields this process's keys (epoch, index) for each step from `start` on, over all epochs.

    Every epoch is a permutation drawn from (seed, epoch); the last images that do not fill a batch sit out.
    """

    def __init__(self, images: int, batch_size: int, epochs: int, seed: int, start: int = 0):
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.per_epoch = images // batch_size
        self.start, self.steps = start, epochs * self.per_epoch

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, drawn = np.empty(0), -1
        for step in range(self.start, self.steps):
            epoch, position = divmod(step, self.per_epoch)
            if epoch != drawn:
                order, drawn = np.random.default_rng((self.seed, epoch)).permutation(self.images), epoch
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in batch[run.rank() :: run.world_size()]]


def _collate(samples: list) -> tuple[Tensor, Tensor] | UserError:
    for item in samples:
        if isinstance(item, UserError):
            return item
    images, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # Ctrl-C and SLURM's warning reach every process of a job but are meant for the one that the workers serve.
    # SIGTERM must work: it is how a process that exits ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def loader(data: Dataset, workers: int, **options) -> DataLoader:
    """A DataLoader that leaves the global random state alone and pins memory where there is a GPU."""
    return DataLoader(
        data,
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        **options,
    )


def train_loader(data: TrainData, sampler: StepSampler, workers: int) -> DataLoader:
    return loader(data, workers, batch_sampler=sampler, collate_fn=_collate)


class Batch:
    """What a loss sees: `image` (N, 3, H, W), normalised, and `labels(zoom_factor)` at any grid.

    A batch may be one of several shares (processes, and forward passes with TRAIN.accumulate) of a whole one;
    see Labels.count.
    """

    def __init__(self, image: Tensor, label: Tensor, ignore_label: int, whole: Tensor | None = None, shares: int = 1):
        self.image, self.label, self.ignore_label = image, label, ignore_label
        self._whole, self._shares = label if whole is None else whole, shares
        self._cache: dict[int, Labels] = {}

    def labels(self, zoom_factor: int) -> Labels:
        """The labels at (H - 1) * zoom_factor // 8 + 1 points a side: 8 is every pixel, 1 is stride 8."""
        if zoom_factor not in self._cache:
            label = sample(self.label, zoom_factor)
            count = (sample(self._whole, zoom_factor) != self.ignore_label).sum().float()
            if run.world_size() > 1:
                dist.all_reduce(count)
            count = (count / (self._shares * run.world_size())).clamp(min=1e-6)
            self._cache[zoom_factor] = Labels(label, label != self.ignore_label, count)
        return self._cache[zoom_factor]

    def split(self, parts: int) -> Iterator["Batch"]:
        """`parts` batches of equal size, which share this batch's count of valid positions."""
        for image, label in zip(self.image.chunk(parts), self.label.chunk(parts), strict=True):
            yield Batch(image, label, self.ignore_label, self.label, parts)


class Normalize:
    """uint8 or float (N, H, W, 3) -> float32 (N, 3, H, W) on the device, minus mean, over std, channels last."""

    def __init__(self, data: Data, device: torch.device):
        self.mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        image = image.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2)
        return (image.float() - self.mean) / self.std
