"""DISTILL.cache: the teacher's outputs on the disk, for every later run that sees the same crops.

A crop is a function of (seed, epoch, index), so runs of one seed, crop size and augmentation share theirs, whatever
their student, losses, weights and temperature. Each crop's map of a layer is a record of fixed size in the file
CACHE/RUN/LAYER/EPOCH, at its index: checksum of the crop's pixels, checksum of the map, the map in 16 bits. Both
checksums must hold, so other images, a write that a kill cut short, and a flipped bit are misses, and are written anew.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.pspnet import ZOOM, Output, PSPNet
from util import distributed, files, quota
from util.config import Config, Data
from util.data.lists import read_text
from util.errors import UserError

HEAD = struct.Struct("<II")  # checksums of the crop and of the map
GB = 1e9
PENDING = 4  # batches that may wait for the disk

log = logging.getLogger("cache")

Key = tuple[int, int]  # epoch, index: see util/loader.py


class CachedOutputs(NamedTuple):
    """What the cache knows of one crop, or of a batch of them.

    layers: the teacher's maps as 16-bit patterns, int16 (C, h, w) or (N, C, h, w); None where one is missing.
    """

    keys: list[Key]
    checksums: list[int]
    layers: dict[str, Tensor] | None

    @classmethod
    def joined(cls, samples: Sequence["CachedOutputs"]) -> "CachedOutputs":
        """One missing crop makes the whole batch a miss: the teacher's rounding depends on what it sees together."""
        whole = all(sample.layers is not None for sample in samples)
        names = samples[0].layers if whole else ()
        layers = {name: torch.stack([sample.layers[name] for sample in samples]) for name in names}
        keys, checksums = ([value for s in samples for value in getattr(s, field)] for field in ("keys", "checksums"))
        return cls(keys, checksums, layers if whole else None)

    def split(self, parts: int) -> Iterator["CachedOutputs"]:
        size = len(self.keys) // parts
        for first in range(0, len(self.keys), size):
            part = slice(first, first + size)
            layers = None if self.layers is None else {name: x[part] for name, x in self.layers.items()}
            yield CachedOutputs(self.keys[part], self.checksums[part], layers)


class TeacherCache:
    """The part of DISTILL.cache that belongs to this run's teacher, crops and seed.

    layers: of the teacher, that the losses read. A teacher of bfloat16 is kept as it is; float32 is rounded to
    float16, for the run that writes, too: it learns the same as those that read.
    """

    def __init__(self, cfg: Config, teacher: PSPNet, layers: Sequence[str]):
        t, d, data = cfg.train, cfg.distill, cfg.data
        self.narrow = torch.bfloat16 if next(teacher.parameters()).dtype == torch.bfloat16 else torch.float16
        channels = teacher.channels()
        grids = {name: tuple((side - 1) * ZOOM[name] // 8 + 1 for side in (t.train_h, t.train_w)) for name in layers}
        self.shapes = {name: (channels[name], *grids[name]) for name in layers}
        with Path(d.teacher_path).open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        # The crop's checksum stands for images, augmentation and normalising's input; the rest is what it cannot tell,
        # and what keeps runs of different crops from writing over each other's.
        self.description = {
            "teacher": {"path": d.teacher_path, "sha256": weights, "layers": d.teacher_layers},
            "computed": [str(self.narrow), distributed.device().type, data.mean, data.std],
            "seed": t.manual_seed,
            "crops": {
                key: value
                for key, value in t.model_dump().items()
                if key in ("train_h", "train_w") or key.split("_")[0] in ("scale", "rotate", "blur", "flip")
            },
            "lists": {key: _digest(data, key) for key in ("train_list", "unlabelled_list")},
        }
        identity = {**self.description, "teacher": [weights, d.teacher_layers]}  # wherever the file lies
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.base, self.folder, self.limit = Path(d.cache), Path(d.cache, name), d.cache_gb * GB
        self.broken = False

    def bytes_needed(self, crops: int) -> dict[str, int]:
        return {name: crops * self._record(name) for name in self.shapes}

    def read(self, key: Key, crop: NDArray[np.uint8]) -> CachedOutputs:
        """What is kept of `crop` (H, W, 3), the crop of `key`."""
        checksum, layers = zlib.crc32(crop), {}
        for name, shape in self.shapes.items():
            try:
                with self._path(name, key).open("rb", buffering=0) as file:
                    record = bytearray(os.pread(file.fileno(), self._record(name), key[1] * self._record(name)))
            except OSError:  # not written yet, or the disk is gone: then the teacher is there
                record = bytearray()
            if len(record) < self._record(name) or HEAD.unpack_from(record) != (checksum, _checksum_of_map(record)):
                return CachedOutputs([key], [checksum], None)
            layers[name] = torch.frombuffer(record, dtype=torch.int16, offset=HEAD.size).view(shape)
        return CachedOutputs([key], [checksum], layers)

    def encode(self, output: Output) -> dict[str, Tensor]:
        """The layers' 16-bit patterns, int16 (N, C, h, w), on the output's device."""
        result = {}
        for name in self.shapes:
            x = output.layer(name)
            if self.narrow == torch.float16:
                x = x.clamp(-65504, 65504)
            result[name] = x.to(self.narrow).contiguous().view(torch.int16)
        return result

    def decode(self, layers: dict[str, Tensor]) -> Output:
        """The teacher's output on the device, of the layers that are kept."""
        wide = {name: x.to(distributed.device(), non_blocking=True).view(self.narrow) for name, x in layers.items()}
        if self.narrow == torch.float16:
            wide = {name: x.float() for name, x in wide.items()}
        return Output(wide.pop("logits"), wide.pop("aux", None), wide)

    def write(self, kept: CachedOutputs, layers: dict[str, Tensor]) -> None:
        """Write the batch's records. A disk that is full or gone ends the writing, with a warning, not the run."""
        if self.broken:
            return
        try:
            for name, x in layers.items():
                for key, checksum, values in zip(kept.keys, kept.checksums, x.cpu().numpy(), strict=True):
                    body = values.tobytes()
                    record = HEAD.pack(checksum, zlib.crc32(body)) + body
                    path = self._path(name, key)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
                    try:
                        written = os.pwrite(file, record, key[1] * len(record))
                    finally:
                        os.close(file)
                    if written < len(record):
                        raise OSError(None, "the disk took a part only")
        except OSError as error:
            self.broken = True
            log.warning(
                "warning: cannot write %s (DISTILL.cache): %s; the run goes on without", self.folder, error.strerror
            )

    def plan(self, crops: int) -> str:
        """What a run of `crops` crops would need. Raises UserError when DISTILL.cache_gb or the disk has no room."""
        needed, there = self.bytes_needed(crops), self.bytes_there()
        total = sum(needed.values())
        parts = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in needed.items())
        if total > self.limit:
            raise UserError(
                f"the teacher's outputs on {crops} crops take {total / GB:.1f} GB ({parts}), DISTILL.cache_gb is "
                f"{self.limit / GB:g}; raise it, or leave DISTILL.cache empty"
            )
        # What other runs left may be removed to make room for this one's.
        free = files.free(self.base) + sum(map(quota.size, quota.others(self.folder)))
        if total - there > free:
            raise UserError(
                f"{self.base} has {free / GB:.1f} GB left for DISTILL.cache; the teacher's outputs on {crops} crops "
                f"take {total / GB:.1f} GB ({parts}); make room, or leave DISTILL.cache empty"
            )
        return (
            f"the teacher's outputs on {crops} crops take {total / GB:.2f} GB ({parts}), {there / GB:.2f} GB are there"
        )

    def bytes_there(self) -> int:
        return sum(quota.size(self.folder / name) for name in self.shapes)

    @contextlib.contextmanager
    def opened(self, crops: int) -> Iterator[None]:
        """While entered, no other run removes this one's part; room for `crops` crops is made first."""
        if not distributed.is_main():
            yield
            return
        text = self.plan(crops)
        try:
            held = quota.hold(self.folder, self.description)
        except OSError as error:
            raise UserError(f"cannot make or write {self.folder} (DISTILL.cache): {error.strerror}") from None
        with held:
            total, there = sum(self.bytes_needed(crops).values()), self.bytes_there()
            own = max(total, there) + quota.size(self.folder) - there  # it may hold layers of other runs' losses
            left = quota.make_room(self.folder, self.limit - own, needed=max(total - there, 0))
            if left < 0:
                raise UserError(
                    f"{self.base} (DISTILL.cache) is in use by other runs, and with this one's {own / GB:.1f} GB it "
                    f"would hold {-left / GB:.1f} GB too much; raise DISTILL.cache_gb or make room on the disk, or "
                    "wait for them"
                )
            log.info("%s in %s", text, self.folder)
            yield

    def _record(self, name: str) -> int:
        return HEAD.size + 2 * int(np.prod(self.shapes[name]))

    def _path(self, name: str, key: Key) -> Path:
        return self.folder / name / f"{key[0]:06d}"


class Writer:
    """TeacherCache.write in a thread of its own, so that a step waits neither for the disk nor for the device."""

    def __init__(self, cache: TeacherCache):
        self.cache, self.thread = cache, ThreadPoolExecutor(1)
        self.pending: list[Future] = []

    def __call__(self, kept: CachedOutputs, layers: dict[str, Tensor]) -> None:
        self.pending.append(self.thread.submit(self.cache.write, kept, layers))
        self.wait(PENDING)

    def wait(self, most: int = 0) -> None:
        """Until at most so many batches are not written."""
        while len(self.pending) > most:
            self.pending.pop(0).result()


def _checksum_of_map(record: bytearray) -> int:
    return zlib.crc32(memoryview(record)[HEAD.size :])


def _digest(data: Data, key: str) -> str | None:
    """Of a list's content: the order of its lines decides which index an image has."""
    if path := getattr(data, key):
        return hashlib.sha256("\n".join(read_text(path, f"DATA.{key}")).encode()).hexdigest()[:16]
    return None
