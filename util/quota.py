"""A folder of limited size, of which each run has a part: who used it last, who uses it now, who makes room.

A part is a folder with DESCRIPTION in it, written anew by each run that uses it: its time is that of the last use.
"""

import contextlib
import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from util import files

DESCRIPTION = "run.json"
LOCK = ".lock"

log = logging.getLogger("cache")


@contextlib.contextmanager
def _turn(base: Path) -> Iterator[None]:
    """One process at a time makes, describes or removes the parts of `base`."""
    with (base / LOCK).open("a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def hold(part: Path, description: Mapping[str, Any]) -> TextIO:
    """Make `part` and keep others from removing it until the file that is returned is closed. Raises OSError."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with _turn(part.parent):
        part.mkdir(exist_ok=True)
        file = (part / LOCK).open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_SH)  # let go by the kernel when the process dies; workers don't inherit it
            files.remove_temporaries(part)
            files.replace_text(part / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        except OSError:
            file.close()
            raise
    return file


def size(folder: Path) -> int:
    """Bytes that the files below `folder` take on the disk: less than their lengths where they have holes."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another run may be removing it
            total += path.stat().st_blocks * 512
    return total


def others(part: Path) -> list[Path]:
    """The parts beside `part`."""
    return [path.parent for path in part.parent.glob(f"*/{DESCRIPTION}") if path.parent != part]


def make_room(own: Path, limit: float, needed: float) -> float:
    """Remove the parts beside `own` that were used longest ago, until they take at most `limit` bytes and the disk
    has `needed` bytes free.

    Returns what is left of both, the smaller: below zero when the parts that remain are in use.
    """

    def left() -> float:
        # The disk is asked, not reckoned: parts in use grow meanwhile.
        return min(limit - sum(sizes.values()), files.free(own) - needed)

    with _turn(own.parent):
        sizes = {path: size(path) for path in others(own)}
        for path in sorted(sizes, key=_used):
            if left() >= 0:
                break
            if _remove(path):
                log.info("removed %s, %.2f GB, to make room in %s", path, sizes.pop(path) / 1e9, own.parent)
        return left()


def _used(part: Path) -> float:
    with contextlib.suppress(OSError):
        return (part / DESCRIPTION).stat().st_mtime
    return 0.0


def _remove(part: Path) -> bool:
    """Remove `part`, unless a run holds it. The description goes last: a folder without one is nobody's part."""
    if not (part / DESCRIPTION).is_file():
        return False
    try:
        with (part / LOCK).open("a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.remove_temporaries(part)
            for inner in part.iterdir():
                if inner.is_dir():
                    shutil.rmtree(inner)
            (part / DESCRIPTION).unlink()
            (part / LOCK).unlink()
            part.rmdir()
    except OSError:
        return False
    return True
