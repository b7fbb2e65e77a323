"""Lists and decoding."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from util.config import Config, Data
from util.errors import UserError


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
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UserError(f"image {path} cannot be decoded; replace it or take it out of the list")
    return image


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
    values = np.arange(256, dtype=np.uint8)
    wrong = cv2.LUT(label, ((values >= classes) & (values != ignore_label)).astype(np.uint8))
    if wrong.any():
        raise UserError(
            f"label {path} holds the value {label[wrong > 0].min()}, neither a class (0 .. {classes - 1}) nor "
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
