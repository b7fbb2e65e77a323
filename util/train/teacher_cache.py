"""DISTILL.cache: the teacher's outputs on the disk, for every later run that sees the same crops.

A crop is a function of (seed, epoch, index), so runs of one seed, crop size and augmentation share theirs, whatever
their student, losses, weights and temperature. Each crop's map of a layer is a record of fixed size in the file
CACHE/RUN/LAYER/EPOCH, at its index: checksum of the crop's pixels, checksum of the map, the map in 16 bits. Both
checksums must hold, so other images, a write that a kill cut short, and a flipped bit are misses, and are written anew.
"""

import hashlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.distill.classes import Averaged, Mapped, output_dtype
from model.pspnet import LAYER_ZOOM_FACTOR, Output, PSPNet
from util import distributed, files
from util.config import Config, Data
from util.data.batch import CachedOutputs, Key
from util.data.lists import read_names, read_text
from util.errors import UserError
from util.teachers import sources

HEAD = struct.Struct("<II")  # checksums of the crop and of the map
GB = 1e9

log = logging.getLogger("cache")


class TeacherCache:
    """The folder in DISTILL.cache that belongs to this run's teacher, crops and seed.

    layers: of the teacher, that the losses read. A teacher of bfloat16 is stored as it is; float32 is rounded to
    float16, for the run that writes, too, so that it learns the same as those that read.
    """

    def __init__(self, cfg: Config, teacher: PSPNet | Mapped | Averaged, layers: Sequence[str]):
        t, d, data = cfg.train, cfg.distill, cfg.data
        self.device = distributed.device()
        bfloat16 = output_dtype(teacher) == torch.bfloat16
        self.storage_dtype = torch.bfloat16 if bfloat16 else torch.float16
        channels = teacher.channels()
        self.shapes = {
            name: (channels[name], *((side - 1) * LAYER_ZOOM_FACTOR[name] // 8 + 1 for side in (t.train_h, t.train_w)))
            for name in layers
        }
        # The crop's checksum stands for images, augmentation and normalisation's input; this is the rest, and what
        # keeps runs of different crops from overwriting each other's.
        self.description = {
            "teacher": _description(cfg, teacher),
            "computed": [str(self.storage_dtype), self.device.type, data.mean, data.std],
            "seed": t.manual_seed,
            "crops": {
                key: value
                for key, value in t.model_dump().items()
                if key in ("train_h", "train_w") or key.split("_")[0] in ("scale", "rotate", "blur", "flip")
            },
            "lists": {key: _digest(data, key) for key in ("train_list", "unlabelled_list")},
        }
        name = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.broken = Path(d.cache, name), False

    def open(self, crops: int) -> None:
        """Make the folder for `crops` crops. Raises UserError when the disk has no room or cannot be written."""
        log.info("%s in %s", self.plan(crops), self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.replace_text(self.folder / "run.json", json.dumps(self.description, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot make or write {self.folder} (DISTILL.cache): {error.strerror}") from None

    def plan(self, crops: int) -> str:
        """The size of `crops` crops' outputs, in words. Raises UserError when the disk has less left."""
        needed = {name: crops * self._record(name) for name in self.shapes}
        total, parts = sum(needed.values()), ", ".join(f"{name} {size / GB:.2f} GB" for name, size in needed.items())
        there = sum(p.stat().st_blocks * 512 for name in self.shapes for p in (self.folder / name).glob("*"))
        free = files.free(self.folder)
        if total - there > free:
            raise UserError(
                f"the teacher's outputs on {crops} crops take {total / GB:.1f} GB ({parts}), and {self.folder.parent} "
                f"(DISTILL.cache) has {free / GB:.1f} GB left; delete folders there that no run needs any more, or "
                "leave DISTILL.cache empty"
            )
        return (
            f"the teacher's outputs on {crops} crops: {total / GB:.2f} GB ({parts}), of which {there / GB:.2f} GB exist"
        )

    def read(self, key: Key, crop: NDArray[np.uint8]) -> CachedOutputs:
        """The outputs stored for `crop` (H, W, 3), the crop of `key`; layers is None when one is missing."""
        checksum, layers = zlib.crc32(crop), {}
        for name, shape in self.shapes.items():
            try:
                with self._path(name, key).open("rb", buffering=0) as file:
                    record = bytearray(os.pread(file.fileno(), self._record(name), key[1] * self._record(name)))
            except OSError:  # not written yet, or the disk is gone: the teacher computes it
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
            if self.storage_dtype == torch.float16:
                x = x.clamp(-65504, 65504)
            result[name] = x.to(self.storage_dtype).contiguous().view(torch.int16)
        return result

    def decode(self, layers: dict[str, Tensor]) -> Output:
        """The teacher's output on the device, of the layers that are stored."""
        maps = {name: x.to(self.device, non_blocking=True).view(self.storage_dtype) for name, x in layers.items()}
        if self.storage_dtype == torch.float16:
            maps = {name: x.float() for name, x in maps.items()}
        return Output(maps.pop("logits", None), maps.pop("aux", None), maps)

    def write(self, cached: CachedOutputs, layers: dict[str, Tensor]) -> None:
        """Write the batch's records. A disk that is full or gone ends the writing, with a warning, not the run."""
        if self.broken:
            return
        try:
            for name, x in layers.items():
                for key, checksum, values in zip(cached.keys, cached.checksums, x.cpu().numpy(), strict=True):
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

    def _record(self, name: str) -> int:
        return HEAD.size + 2 * int(np.prod(self.shapes[name]))

    def _path(self, name: str, key: Key) -> Path:
        return self.folder / name / f"{key[0]:06d}"


def _checksum_of_map(record: bytearray) -> int:
    return zlib.crc32(memoryview(record)[HEAD.size :])


def _digest(data: Data, key: str) -> str | None:
    """Of a list's content: the order of its lines decides which index an image has."""
    if path := getattr(data, key):
        return hashlib.sha256("\n".join(read_text(path, f"DATA.{key}")).encode()).hexdigest()[:16]
    return None


def _description(cfg: Config, teacher: PSPNet | Mapped | Averaged) -> dict[str, Any]:
    """Its weights, and how the scores of one of other classes come about."""
    d = cfg.distill
    own = {"sha256": sources.digest(d.teachers), "layers": d.teacher_architecture}
    if isinstance(teacher, PSPNet):
        return own
    precision = str(distributed.precision(d.precision or cfg.train.precision))
    members = teacher.teachers if isinstance(teacher, Averaged) else [teacher]
    groups = [member.groups.tolist() for member in members]
    own |= {"groups": groups, "weights": d.teacher_weights, "precision": precision}
    return own | {"names": read_names(cfg.data)}
