"""Images and labels from files, which may be damaged."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from util.errors import UserError, worker_death

MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow's limit, beyond which a small file is a bomb: 179 million
ORIENTATION = 0x0112  # EXIF tag

# A broken image is reported in one line of ours, without OpenCV's log.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker: decoders fill what is missing with gray, silently."""
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # to the start of scan, since a thumbnail
        at += 2 + int.from_bytes(data[at + 2 : at + 4])  # among the segments before it has an end marker, too
    return data.find(b"\xff\xd9", at) < 0


@contextlib.contextmanager
def _faults_of(what: str, path: Path) -> Iterator[None]:
    """Turn the many kinds of exception that decoders raise into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{what} {path} claims over {MOST_PIXELS:,} pixels; take it out of the list") from None
    except Exception as error:
        if worker_death(error):
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, UnidentifiedImageError):  # whose words have an address in them
            reason = "unknown format"
        raise UserError(
            f"{what} {path} cannot be decoded ({reason:.120}); replace it or take it out of the list"
        ) from None


def _open(what: str, path: Path) -> tuple[bytes, Image.Image]:
    """The file's bytes and its header."""
    if not path.is_file():
        raise UserError(f"{what} {path} is no file, or a link to a missing one; correct the list")
    data = path.read_bytes()
    if _cut_short(data):
        raise UserError(f"{what} {path} is cut short; replace it or take it out of the list")
    picture = Image.open(io.BytesIO(data))
    if picture.format == "PNG":
        picture.verify()  # the checksums, which reading the pixels leaves unchecked
        picture = Image.open(io.BytesIO(data))
    return data, picture


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; gray, alpha, CMYK and 16-bit pictures become 8-bit RGB.

    EXIF orientation is applied, as by cv2 in semseg and by every viewer: labels are drawn on what a
    viewer shows. Raises UserError for what cannot be decoded.
    """
    with _faults_of("image", path):
        data, _ = _open("image", path)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError("damaged, or of a format that OpenCV does not know")
    return image


def sides_swapped(path: Path) -> bool:
    """Whether the EXIF orientation (5 to 8) swaps height and width."""
    with _faults_of("image", path):
        return _open("image", path)[1].getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def read_label(path: Path, shape: tuple[int, int], classes: int, ignore_label: int) -> NDArray[np.uint8]:
    """(H, W) class indices of a palette or gray PNG. Raises UserError for other modes and sizes.

    Palette entries are read as indices: converting them to gray would invent class numbers.
    """
    with _faults_of("label", path):
        _, picture = _open("label", path)
        if picture.mode not in ("L", "P"):
            raise UserError(
                f"label {path} is a {picture.mode} picture; expected one channel of class indices "
                "(palette or 8-bit gray PNG)"
            )
        label = np.asarray(picture)
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
