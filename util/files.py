"""Files written whole or not at all, and in the background; free space."""

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from util.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends, flushed to the disk and renamed.

    After an error, or a kill at any moment, `path` is what it was before. Raises OSError as writing
    does.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all. Raises OSError."""
    with atomic_write(path) as file:
        file.write(text.encode())


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed `atomic_write` left in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def existing_parent(folder: Path) -> Path:
    """`folder`, or what exists of the path to it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_writable(folder: Path, key: str) -> None:
    """Raise UserError, naming the config key, when `folder` could not be made and written."""
    there = existing_parent(folder)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"{there} cannot be written, and {folder} ({key}) lies in it")


def free(folder: Path) -> int:
    """Bytes left on the disk that `folder` is on, or would be."""
    return shutil.disk_usage(existing_parent(folder)).free


class BackgroundWriter:
    """Writes in a thread, in order; at most `pending` wait. The next call raises its error."""

    def __init__(self, pending: int = 4):
        self.pending, self.thread, self.futures = pending, ThreadPoolExecutor(1), deque()

    def submit(self, write: Callable, *arguments: Any) -> None:
        self.futures.append(self.thread.submit(write, *arguments))
        while len(self.futures) > self.pending or (self.futures and self.futures[0].done()):
            self.futures.popleft().result()

    def flush(self) -> None:
        """Wait until all is written."""
        while self.futures:
            self.futures.popleft().result()
