"""Files written whole or not at all, and text read without trust."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends, flushed to the disk and renamed.

    After an error, or a kill at any moment, `path` is what it was before. Raises OSError as writing does.
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


def nearest(folder: Path) -> Path:
    """`folder`, or what exists of the path to it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def free(folder: Path) -> int:
    """Bytes left on the disk that `folder` is on, or would be."""
    return shutil.disk_usage(nearest(folder)).free


def read_text(path: str | Path, limit: int) -> str:
    """The text of a UTF-8 file, without a byte-order mark, line ends as "\\n".

    Raises OSError, UnicodeDecodeError, or ValueError for over `limit` characters (/dev/zero has no end) and for what
    no path can be.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise ValueError(f"it is longer than {limit:,} characters")
    return text


def below(root: str, field: str, allow_outside: bool) -> Path:
    """The path `field`, relative to `root`. What is checked is what is opened: `..` goes before a link is followed.

    Links in `root` may lead outside, as those that dataset/*/prepare.py makes. Raises ValueError for a path that
    leaves `root` by itself (unless allow_outside), or that is none.
    """
    if "\0" in field:
        raise ValueError("is no path")
    if allow_outside:
        return Path(root, field)
    base = os.path.normpath(Path(root).absolute())
    path = os.path.normpath(Path(base, field))
    if os.path.commonpath([base, path]) != base:
        raise ValueError("leads out of DATA.data_root; correct it, or set DATA.allow_outside to True")
    return Path(root, os.path.relpath(path, base))
