"""Bytes that nobody should trust, made from seeds."""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from util.errors import UserError


def cut(content: bytes, seed: int) -> bytes:
    return content[: np.random.default_rng(seed).integers(1, len(content) - 12)]


def zero_tail(content: bytes, seed: int) -> bytes:
    """As a file system leaves it after a crash: the right length, the end never written."""
    short = cut(content, seed)
    return short + bytes(len(content) - len(short))


def flip(content: bytes, seed: int, start: int = 0) -> bytes:
    """One wrong bit."""
    rng, damaged = np.random.default_rng(seed), bytearray(content)
    damaged[rng.integers(start, len(content))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def scatter(content: bytes, seed: int) -> bytes:
    """Some bytes replaced by any."""
    rng, damaged = np.random.default_rng(seed), bytearray(content)
    for at in rng.integers(0, len(content), 5):
        damaged[at] = rng.integers(256)
    return bytes(damaged)


def encoded(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    picture, buffer = Image.fromarray(array), io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Code:
    """An object whose pickle runs a command."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


@contextmanager
def outcome(expected: str, *names: str) -> Iterator[None]:
    """Check how the block ends: `works`, `either`, or a pattern of the one error. An error has all `names` in it."""
    error = None
    try:
        yield
    except UserError as raised:
        error = str(raised)
    if error is None:
        assert expected in ("works", "either"), "it was taken as if nothing were wrong"
        return
    assert expected != "works", error
    assert error.isprintable() and len(error) < 3000
    assert all(name in error for name in names), error
    assert expected == "either" or re.search(expected, error), error


def cases(table: dict[str, tuple[str, object]], seeds: dict[str, tuple[str, Callable, int]]) -> list[SimpleNamespace]:
    """Single cases {name: (expected, what)} and families {name: (expected, function of a seed, how many seeds)}."""
    found = [SimpleNamespace(name=name, expected=expected, what=what) for name, (expected, what) in table.items()]
    for name, (expected, make, count) in seeds.items():
        for seed in range(count):
            found.append(SimpleNamespace(name=f"{name}{seed}", expected=expected, what=make(seed)))
    return found


def put(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
