"""List files, class names and palettes."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from util.config import Data
from util.data.decode import read_image, read_label, sides_swapped
from util.errors import UserError


class Pair(NamedTuple):
    image: Path
    label: Path | None


def read_text(path: str | Path, key: str) -> list[str]:
    """The file's lines without their ends. Raises UserError that names the config key."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        script = Path(path).parent.parent / "prepare.py"
        hint = f"make it with python {script}" if script.is_file() else f"correct {key}"
        where = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"{path} ({key}) does not exist{where}; {hint} (or see `make demo`)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} ({key}) cannot be read as text ({error})") from None


def read_list(path: str, key: str, root: str, labelled: bool = True, once: bool = False) -> list[Pair]:
    """The pairs of a list file: `image label` a line (or `image`), absolute or relative to `root`.

    key: the config key that named the file, for errors. once: each image may stand in it once,
    since it is scored. Raises UserError with file and line when a line has another form, or a file
    in it does not exist.
    """
    pairs, where, first = [], defaultdict(dict), {}
    for number, line in enumerate(read_text(path, key), 1):
        line = line.strip()
        if not line:
            continue
        # A tab separates paths with spaces in them.
        fields = [field.strip() for field in line.split("\t")] if "\t" in line or not labelled else line.split()
        if len(fields) != 1 + labelled:
            form = "`image label`, with a tab between them where a path has spaces" if labelled else "`image`"
            raise UserError(f"{path}, line {number}: expected {form}, found {line[:120]!r}")
        found = [Path(root, field) for field in fields]
        for file in found:
            where[file.parent].setdefault(file.name, number)
        earlier = first.setdefault(found[0], number)
        if once and earlier != number:
            raise UserError(f"{path}, line {number}: {found[0]} stands in line {earlier}, too, and would count twice")
        pairs.append(Pair(found[0], found[1] if labelled else None))
    if not pairs:
        raise UserError(f"{path} ({key}) lists no image")
    for folder, names in where.items():  # one listing a folder: 20,000 look-ups are slow over a network
        try:
            present = {entry.name for entry in folder.iterdir()}
        except (OSError, ValueError):  # no folder, not ours to read, or no name of one
            present = set()
        for name, number in names.items():
            if name not in present:
                form = "" if labelled else "; each line of this list is one image"
                raise UserError(
                    f"{path}, line {number}: {folder / name} does not exist (DATA.data_root is {root}){form}"
                )
    return pairs


def scored_list(path: str, key: str, data: Data, labelled: bool = True) -> list[Pair]:
    """read_list for images that are scored: each may stand in it once."""
    return read_list(path, key, data.data_root, labelled, once=True)


def val_pairs(data: Data) -> list[Pair]:
    return scored_list(data.val_list, "DATA.val_list", data) if data.val_list else []


def read_pair(pair: Pair, data: Data, ignore_label: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    image = read_image(pair.image, data.image_max)
    try:
        return image, read_label(pair.label, image.shape[:2], data.classes, ignore_label, data.label_map)
    except UserError as error:
        if sides_swapped(pair.image):
            raise UserError(
                f"{error}; {pair.image} has an EXIF orientation: its label must fit it as viewers show it"
            ) from None
        raise


def read_names(data: Data) -> list[str]:
    names = [line.strip() for line in read_text(data.names_path, "DATA.names_path") if line.strip()]
    if len(names) != data.classes:
        raise UserError(f"{data.names_path} names {len(names)} classes, DATA.classes is {data.classes}")
    return names


def read_colors(data: Data) -> NDArray[np.uint8]:
    """(256, 3) palette: the file's colours, one `red green blue` a line, then black."""
    lines = [line.replace(",", " ").split() for line in read_text(data.colors_path, "DATA.colors_path") if line.strip()]
    try:
        colors = np.array([[int(red), int(green), int(blue)] for red, green, blue in lines], dtype=np.uint8)
    except (ValueError, OverflowError):
        raise UserError(f"{data.colors_path}: expected three numbers from 0 to 255 a line") from None
    if not data.classes <= len(colors) <= 256:
        raise UserError(f"{data.colors_path} has {len(colors)} colours, DATA.classes is {data.classes}")
    return np.vstack([colors, np.zeros((256 - len(colors), 3), np.uint8)])
