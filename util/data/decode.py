"""Images and labels from files, which may be damaged."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from util.data.label_map import OTHER, apply
from util.errors import UserError, first_line, worker_death

MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow's limit, beyond which a small file is a bomb: 179 million
ORIENTATION = 0x0112  # EXIF tag
PNG_DEPTH = 24  # place of the bits a channel in a PNG file

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
        reason = getattr(error, "strerror", None) or first_line(error)
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


def read_image(path: Path, image_max: int | None) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; gray, alpha, CMYK and 16-bit pictures become 8-bit RGB.

    image_max: the value of a 16-bit picture that becomes 255 (DATA.image_max); else 65535. EXIF
    orientation is applied, as by cv2 in semseg and by every viewer: labels are drawn on what a
    viewer shows. Raises UserError for what cannot be decoded, or not without DATA.image_max.
    """
    with _faults_of("image", path):
        data, picture = _open("image", path)
        buffer = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError("damaged, or of a format that OpenCV does not know")
        if picture.mode == "LAB":
            raise UserError(f"image {path} is a LAB picture; save it as RGB")
        if picture.format in ("TIFF", "PPM", "JPEG2000") or (picture.format == "PNG" and data[PNG_DEPTH] == 16):
            image = _from_deep(path, image, cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH), image_max)
    return image


def _from_deep(path: Path, image: NDArray[np.uint8], deep: NDArray | None, image_max: int | None) -> NDArray[np.uint8]:
    """`image`, or, where `deep` has more than 8 bits a channel, what DATA.image_max makes of it."""
    if deep is None or deep.dtype == np.uint8:
        return image
    if deep.dtype != np.uint16:
        raise UserError(f"image {path} holds {deep.dtype} numbers; save it with 8 or 16 bits without sign")
    if image_max is None:
        if deep.max() < 1 << 14:  # 14 bits and fewer, which would be read as almost black
            raise UserError(
                f"image {path} has 16 bits and no value above {deep.max()}; set DATA.image_max to the value that means "
                "white, such as 1023 or 4095"
            )
        return image
    return (deep.clip(max=image_max).astype(np.float32) * (255 / image_max)).round().astype(np.uint8)


def sides_swapped(path: Path) -> bool:
    """Whether the EXIF orientation (5 to 8) swaps height and width."""
    with _faults_of("image", path):
        return _open("image", path)[1].getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def read_label(
    path: Path,
    shape: tuple[int, int],
    classes: int,
    ignore_label: int,
    label_map: Mapping[int | str, int] | None = None,
) -> NDArray[np.uint8]:
    """(H, W) class indices of a palette or gray picture, or what DATA.label_map makes of any.

    Palette entries are read as indices: converting them to gray would invent class numbers. Raises
    UserError for other modes, sizes and values, and for a lossy format.
    """
    with _faults_of("label", path):
        _, picture = _open("label", path)
        if picture.format == "JPEG":
            raise UserError(f"label {path} is a JPEG, which changes class indices; save labels as PNG")
        colors = any(isinstance(key, str) and key != OTHER for key in label_map or ())
        if not colors and picture.mode not in ("L", "P"):
            raise UserError(
                f"label {path} is a {picture.mode} picture; expected one channel of class indices (palette or 8-bit "
                "gray PNG); colours become classes by DATA.label_map"
            )
        try:
            label = apply(picture, label_map) if label_map else np.asarray(picture)
        except UserError as error:
            raise UserError(f"label {path}: {error}") from None
    if label.shape != shape:
        raise UserError(f"label {path} is {label.shape[1]}x{label.shape[0]}, its image is {shape[1]}x{shape[0]}")
    values = np.arange(256, dtype=np.uint8)
    wrong = cv2.LUT(label, ((values >= classes) & (values != ignore_label)).astype(np.uint8))
    if wrong.any():
        raise UserError(
            f"label {path} holds the value {label[wrong > 0].min()}, neither a class (0 .. {classes - 1}) nor "
            f"TRAIN.ignore_label ({ignore_label}); DATA.label_map renames values, for instance "
            f"{{0: {ignore_label}, 1: 0, 2: 1}} where classes count from 1"
        )
    return label
