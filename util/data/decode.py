"""Images and labels from files, which may be damaged."""

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.errors import UserError, worker_death

MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow's limit, beyond which a small file is a bomb: 179 million
ORIENTATION = 0x0112  # EXIF tag

# A broken image is reported in one line of ours, without OpenCV's log.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker: decoders fill the missing part with gray and report nothing."""
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # to the start of scan, since a thumbnail
        at += 2 + int.from_bytes(data[at + 2 : at + 4])  # among the segments before it has an end marker, too
    return data.find(b"\xff\xd9", at) < 0


def _open(path: Path, what: str) -> tuple[bytes, Image.Image]:
    """The file's bytes and its header. Raises UserError for what is no picture, not whole, or absurdly large."""
    if not path.is_file():
        raise UserError(f"{what} {path} is no file, or a link to a missing one; correct the list")
    try:
        data = path.read_bytes()
        if _cut_short(data):
            raise UserError(f"{what} {path} is cut short; replace it or take it out of the list")
        picture = Image.open(io.BytesIO(data))
        if picture.format == "PNG":
            picture.verify()  # the checksums, which reading the pixels leaves unchecked
            picture = Image.open(io.BytesIO(data))
        return data, picture
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{what} {path} claims over {MOST_PIXELS:,} pixels; take it out of the list") from None
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise _undecodable(what, path, error) from None


def _undecodable(what: str, path: Path, error: Exception) -> Exception:
    """The UserError for a file that `error` came from; `error` itself when it is about something else."""
    if worker_death(error):
        return error
    reason = getattr(error, "strerror", None) or (str(error).replace(repr(path), "it") or type(error).__name__)
    if "BytesIO" in reason:  # Pillow's words for an unknown format, with an address in them
        reason = "unknown format"
    return UserError(f"{what} {path} cannot be decoded ({reason:.120}); replace it or take it out of the list")


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; gray, alpha, CMYK and 16-bit pictures become 8-bit RGB.

    EXIF orientation is applied, as by cv2 in semseg and by every viewer: labels are drawn on what a viewer shows.
    Raises UserError for what cannot be decoded.
    """
    data, _ = _open(path, "image")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"image {path} cannot be decoded; replace it or take it out of the list")
    return image


def sides_swapped(path: Path) -> bool:
    """Whether the EXIF orientation (5 to 8) swaps height and width."""
    return _open(path, "image")[1].getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def read_label(path: Path, shape: tuple[int, int], classes: int, ignore_label: int) -> NDArray[np.uint8]:
    """(H, W) class indices of a palette or gray PNG. Raises UserError for another mode, size or value.

    Palette entries are read as indices: converting them to gray would invent class numbers.
    """
    _, picture = _open(path, "label")
    if picture.mode not in ("L", "P"):
        raise UserError(
            f"label {path} is a {picture.mode} picture; expected one channel of class indices "
            "(palette or 8-bit gray PNG)"
        )
    try:
        label = np.asarray(picture)
    except Exception as error:  # as in _open
        raise _undecodable("label", path, error) from None
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
