"""DATA.label_map, and a look at a few labels for what contradicts the config."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.errors import UserError
from util.keys import Data

OTHER = "other"  # the key for all values or colours that the map does not name
SAMPLE = 16  # labels that are looked at

log = logging.getLogger("labels")


def apply(picture: Image.Image, label_map: Mapping[int | str, int]) -> NDArray[np.uint8]:
    """The picture's values, or with keys like "128 64 128" its colours, mapped: (H, W) uint8.

    Raises UserError for a value or colour that the map does not name.
    """
    sources = {key: value for key, value in label_map.items() if key != OTHER}
    by_color = any(isinstance(key, str) for key in sources)
    if by_color:
        pixels = np.asarray(picture.convert("RGB")).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        codes = [int.from_bytes(bytes(map(int, key.split()))) for key in sources]
    else:
        pixels, codes = np.asarray(picture), list(sources)
    if not codes:  # `other` alone
        return np.full(pixels.shape[:2], label_map[OTHER], np.uint8)
    order = np.argsort(codes)
    codes, values = np.array(codes)[order], np.array(list(sources.values()), np.uint8)[order]
    place = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
    known = codes[place] == pixels
    if OTHER not in label_map and not known.all():
        found = int(pixels[~known].min())
        name = f"colour {found >> 16} {found >> 8 & 255} {found & 255}" if by_color else f"value {found}"
        raise UserError(f"the {name} is not in DATA.label_map; name it, or map the rest to void, as in other: 255")
    return np.where(known, values[place], label_map.get(OTHER, 0)).astype(np.uint8)


def check_labels(paths: Sequence[Path], names: Sequence[str], colors: NDArray[np.uint8], ignore_label: int) -> None:
    """Look at a few label files that are read without a label_map.

    colors: (256, 3). Raises UserError for masks of 0 and 255 where there are two classes, and for
    palettes whose colours say other classes than their indices, or differ from file to file.
    """
    seen: set[int] = set()
    palette: dict[int, tuple[int, ...]] = {}
    classes = len(names)
    for path in [paths[i] for i in np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int)]:
        try:
            picture = Image.open(io.BytesIO(path.read_bytes()))
            values = np.flatnonzero(np.bincount(np.asarray(picture).ravel(), minlength=256)[:256])
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError):
            continue  # reading it in training says what is wrong
        seen |= set(values.tolist())
        if picture.mode != "P":
            continue
        entries = np.array(picture.getpalette() or [], np.uint8).reshape(-1, 3)
        for value in (value for value in values if value < min(len(entries), classes)):
            color = tuple(entries[value].tolist())
            other = [c for c in range(classes) if tuple(colors[c].tolist()) == color and c != value]
            if other and color != tuple(colors[value].tolist()):
                raise UserError(
                    f"label {path} gives the value {value} ({names[value]}) the colour of {names[other[0]]}: its "
                    "palette has another order than DATA.colors_path; map colours to classes by DATA.label_map"
                )
            if palette.setdefault(value, color) != color:
                raise UserError(
                    f"label {path}: the palette gives the value {value} another colour than the labels before; if the "
                    "colours say the class, map them by DATA.label_map, else save the labels as gray PNGs"
                )
    if classes == 2 and seen == {0, 255} and ignore_label == 255:
        raise UserError(
            f"the labels hold 0 and 255 alone, and 255 is TRAIN.ignore_label, so {names[1]} has no pixel; for masks of "
            'this kind write DATA.label_map "{0: 0, 255: 1}"'
        )


def warn_of_sides(names: Sequence[str], data: Data, remedy: str) -> None:
    """Warn of classes that a mirrored image exchanges (left arm, right arm) and DATA.flip_pairs does not."""
    sided = [name for name in names if {"left", "right"} & {*name.lower().replace("_", " ").split()}]
    if sided and not data.flip_pairs:
        log.warning(
            f"warning: mirrored images show the wrong side of {', '.join(sided)}; name the pairs in "
            f"DATA.flip_pairs, or set {remedy}"
        )
