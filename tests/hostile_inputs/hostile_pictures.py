"""Broken and hostile images and labels, and unusual ones that must work."""

import cv2
import numpy as np
from conftest import CLASSES, VOID, scene
from hostile import cases, cut, encoded, flip, png_of, zero_tail
from PIL import Image

RNG = np.random.default_rng(0)
PICTURE, LABEL = scene(RNG, 40, 56)
JPEG, PNG = encoded(PICTURE, "JPEG", quality=95), encoded(PICTURE, "PNG")


def exif(orientation: int, thumbnail: bytes = b"") -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes() + thumbnail


def rotated(orientation: int) -> bytes:
    """A JPEG that viewers show as PICTURE, stored turned and mirrored as its EXIF orientation says."""
    mirror, corner = PICTURE[:, ::-1], PICTURE.transpose(1, 0, 2)
    stored = [PICTURE, mirror, np.rot90(PICTURE, 2), PICTURE[::-1], corner, np.rot90(PICTURE), np.rot90(corner, 2),
              np.rot90(PICTURE, -1)][orientation - 1]  # fmt: skip
    return encoded(np.ascontiguousarray(stored), "JPEG", quality=95, exif=exif(orientation))


def to_float32(channels: int) -> bytes:
    """A 16-bit PNG."""
    deep = (PICTURE if channels == 3 else PICTURE[..., :1]).astype(np.uint16)[..., ::-1] * 257
    return cv2.imencode(".png", deep)[1].tobytes()


IMAGES = cases(
    {
        "gray": ("works", encoded(PICTURE, "JPEG", "L")),
        "gray PNG": ("works", encoded(PICTURE, "PNG", "L")),
        "gray and alpha": ("works", encoded(PICTURE, "PNG", "LA")),
        "alpha": ("works", encoded(PICTURE, "PNG", "RGBA")),
        "one bit": ("works", encoded(PICTURE, "PNG", "1")),
        "palette": ("works", encoded(PICTURE, "PNG", "P")),
        "CMYK": ("works", encoded(PICTURE, "JPEG", "CMYK")),
        "YCbCr": ("works", encoded(PICTURE, "JPEG", "YCbCr")),
        "16 bits": ("works", to_float32(3)),
        "16 bits gray": ("works", to_float32(1)),
        "progressive": ("works", encoded(PICTURE, "JPEG", progressive=True)),
        "thumbnail": ("works", encoded(PICTURE, "JPEG", exif=exif(1, JPEG))),
        "bytes after the end": ("works", JPEG + b"trailer" * 99),
        "bytes after the end of a PNG": ("works", PNG + b"trailer" * 99),
        "TIFF": ("works", encoded(PICTURE, "TIFF")),
        "BMP": ("works", encoded(PICTURE, "BMP")),
        "WebP": ("works", encoded(PICTURE, "WEBP")),
        "nothing": ("decoded", b""),
        "zero bytes": ("decoded", bytes(5000)),
        "text": ("decoded", "<html>404 Not Found</html>"),
        "header alone": ("cannot be decoded", b"\x89PNG\r\n\x1a\n"),
        "start alone": ("cut short", b"\xff\xd8\xff"),
        "bomb": ("pixels", png_of(100_000, 100_000)),
        "smaller bomb": ("pixels", png_of(20_000, 20_000)),
        "fewer pixels than it says": ("", png_of(56, 40)),
        "no pixels": ("decoded", png_of(0, 0)),
        "cut with a whole thumbnail": ("cut short", encoded(PICTURE, "JPEG", exif=exif(1, JPEG))[:-900]),
        "label of another size": ("56x40, its image is 30x20", encoded(PICTURE[:20, :30], "PNG")),
        "stored turned, label as stored": ("EXIF", encoded(PICTURE, "JPEG", exif=exif(6))),
    },
    {
        "JPEG cut ": ("cut short", lambda seed: cut(JPEG, seed), 8),
        "PNG cut ": ("", lambda seed: cut(PNG, seed), 8),
        "JPEG zeros ": ("cut short", lambda seed: b"\xff\xd8" + zero_tail(JPEG, seed)[2:], 4),
        "PNG zeros ": ("", lambda seed: zero_tail(PNG, seed), 4),
        "PNG flip ": ("", lambda seed: flip(PNG, seed), 8),
        "JPEG flip ": ("either", lambda seed: flip(JPEG, seed), 8),
        "TIFF cut ": ("", lambda seed: cut(encoded(PICTURE, "TIFF"), seed), 4),
        "EXIF orientation ": ("works", lambda seed: rotated(seed + 1), 8),
    },
)


def with_value(seed: int) -> bytes:
    label, rng = LABEL.copy(), np.random.default_rng(seed)
    label[rng.integers(40), rng.integers(56)] = rng.integers(CLASSES, VOID)
    return encoded(label, "PNG")


GRAY = encoded(LABEL, "PNG")
LABELS = cases(
    {
        "palette with holes": ("works", encoded(np.where(LABEL == 1, 3, LABEL), "PNG", "P")),
        "palette shorter than its values": ("works", encoded(LABEL, "PNG")),
        "nothing but void": ("works", encoded(np.full_like(LABEL, VOID), "PNG")),
        "interlaced and optimized": ("works", encoded(LABEL, "PNG", optimize=True)),
        "colours": ("RGB picture", encoded(PICTURE, "PNG")),
        "alpha": ("RGBA picture", encoded(PICTURE, "PNG", "RGBA")),
        "gray and alpha": ("LA picture", encoded(PICTURE, "PNG", "LA")),
        "CMYK": ("is a JPEG", encoded(PICTURE, "JPEG", "CMYK")),
        "one bit": ("1 picture", encoded(LABEL, "PNG", "1")),
        "16 bits": ("picture; expected one channel", to_float32(1)),
        "floats": ("F picture", encoded(LABEL.astype(np.float32), "TIFF")),
        "lossy": ("is a JPEG", encoded(LABEL, "JPEG", quality=60)),
        "nothing": ("decoded", b""),
        "zero bytes": ("decoded", bytes(999)),
        "text": ("decoded", "class 3 everywhere"),
        "bomb": ("pixels", png_of(100_000, 100_000)),
        "fewer pixels than it says": ("decoded", png_of(56, 40)),
        "one pixel": ("1x1, its image is 56x40", encoded(LABEL[:1, :1], "PNG")),
    },
    {
        "cut ": ("", lambda seed: cut(GRAY, seed), 8),
        "zeros ": ("", lambda seed: zero_tail(GRAY, seed), 4),
        "flip ": ("", lambda seed: flip(GRAY, seed), 8),
        "value ": ("neither a class", with_value, 8),
        "turned ": ("its image is 56x40", lambda seed: encoded(np.rot90(LABEL)[seed:], "PNG"), 4),
    },
)
