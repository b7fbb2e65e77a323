"""Generate `shapes`, a small dataset in the layout of PASCAL VOC: JPEG images, palette-PNG labels, lists.

Each scene has a textured background and a few textured objects of 7 classes, which only their outlines tell apart:
colours, textures, light, size and rotation are drawn from the same distributions for all. Objects cover each other;
every object has a border of one pixel with label 255, as in VOC. A scene is a function of (seed, split, index).

With --easy, for a demonstration in minutes: scenes of a third of the area with fewer objects, whose colours hint at
the class.

    python dataset/shapes/prepare.py [--seed 0] [--train 400] [--val 100] [--easy] [--out dataset/shapes]
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

CLASSES = ("ellipse", "triangle", "rectangle", "ring", "star", "cross", "crescent")  # indices 1 .. 7
VOID = 255
GROUND, OBJECT = (10, 100), (110, 250)  # ranges of colour values, the same for all classes
TURN = np.pi / 12  # objects are turned by up to this much either way
QUALITY = 92  # of the JPEG images

Mask = NDArray[np.uint8]
Points = NDArray[np.float64]
Picture = NDArray[np.float32]


class Look(NamedTuple):
    """What scenes look like. objects, radius: ranges, of which the second of `objects` is left out; sizes in pixels."""

    height: int = 96
    width: int = 128
    objects: tuple[int, int] = (4, 8)
    radius: tuple[float, float] = (16, 26)
    hint: float = 0.0  # how far each object's colours move from their random ones to its class's own


EASY = Look(64, 64, (2, 4), (14, 22), 0.3)


def texture(rng: np.random.Generator, low: float, high: float, look: Look) -> Picture:
    """(height, width, 3): two random colours in low .. high, mixed by smooth noise, stripes or checks."""
    kind = rng.integers(3)
    y, x = np.mgrid[: look.height, : look.width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 24)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind == 0:
        grid = rng.random((int(rng.integers(3, 14)), int(rng.integers(3, 18)))).astype(np.float32)
        mix = cv2.resize(grid, (look.width, look.height), interpolation=cv2.INTER_CUBIC)
    elif kind == 1:
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * u / period)
    else:
        mix = ((u // period + v // period) % 2).astype(np.float32)
    first, second = rng.uniform(low, high, (2, 3))
    second = first + (second - first) * rng.uniform(0, 0.4)
    return (first + (second - first) * mix[..., None]).astype(np.float32)


def arc(radius: float, start: float, stop: float) -> Points:
    """40 points on a circle about the origin, from angle `start` to `stop`."""
    t = np.linspace(start, stop, 40)
    return radius * np.stack([np.cos(t), np.sin(t)], 1)


def outline(kind: str, rng: np.random.Generator) -> list[Points]:
    """Closed polygons (n, 2) about the origin, within a radius of 1; a second one is a hole."""
    if kind == "ellipse":
        return [arc(1, 0, 2 * np.pi) * (1, rng.uniform(0.6, 1))]
    if kind == "triangle":
        return [arc(1, 0, 2 * np.pi)[[0, 13, 26]] * (1, rng.uniform(0.75, 1))]
    if kind == "rectangle":
        return [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.85, rng.uniform(0.4, 0.85))]
    if kind == "ring":
        return [arc(1, 0, 2 * np.pi), arc(rng.uniform(0.45, 0.6), 0, 2 * np.pi)]
    if kind == "star":
        t = 2 * np.pi * np.arange(10) / 10
        radius = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.48), 1)
        return [np.stack([radius * np.cos(t), radius * np.sin(t)], 1)]
    if kind == "cross":
        a = rng.uniform(0.25, 0.38)
        corners = [(1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a), (-a, -1), (a, -1)]
        return [np.array([*corners, (a, -a)])]
    # crescent: the unit disc less a disc of the same radius shifted by d; they meet at the angle acos(d / 2)
    shift = rng.uniform(0.6, 0.8)
    meet = np.arccos(shift / 2)
    bite = arc(1, np.pi - meet, np.pi + meet) + (shift, 0)
    return [np.concatenate([arc(1, meet, 2 * np.pi - meet), bite[::-1]])]


def scene(seed: int, split: int, index: int, look: Look, palette: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Mask]:
    """One scene: RGB image (height, width, 3) and label (height, width). palette: (classes, 3) colours."""
    rng = np.random.default_rng((seed, split, index))
    size = (look.height, look.width)
    image, label = texture(rng, *GROUND, look), np.zeros(size, np.uint8)
    for _ in range(rng.integers(*look.objects)):
        kind = int(rng.integers(len(CLASSES)))
        radius, angle = rng.uniform(*look.radius), rng.uniform(-TURN, TURN)
        turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        centre = rng.uniform((0, 0), (look.width, look.height))
        mask = np.zeros(size, np.uint8)
        polygons = [radius * points @ turn + centre for points in outline(CLASSES[kind], rng)]
        fixed = [np.round(points * 16).astype(np.int32) for points in polygons]  # 4 fractional bits
        cv2.fillPoly(mask, fixed, 255, lineType=cv2.LINE_AA, shift=4)
        soft = (mask / 255.0)[..., None].astype(np.float32)
        skin = texture(rng, *OBJECT, look)
        image = image * (1 - soft) + (skin + look.hint * (palette[kind + 1] - skin)) * soft
        solid = (mask > 127).astype(np.uint8)
        border = cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
        label[solid > 0] = kind + 1
        label[border > 0] = VOID
    y, x = np.mgrid[: look.height, : look.width].astype(np.float32)
    light_angle = rng.uniform(0, 2 * np.pi)
    slope = ((x / look.width - 0.5) * np.cos(light_angle) + (y / look.height - 0.5) * np.sin(light_angle)).astype(
        np.float32
    )
    image = image * (rng.uniform(0.7, 1.2) + rng.uniform(0, 0.5) * slope[..., None])
    image = image + rng.normal(0, rng.uniform(1, 6), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def write(out: Path, seed: int, counts: dict[str, int], look: Look) -> None:
    """Images, labels and lists of all splits under `out`; the lists come last, so that they name what is there."""
    from PIL import Image

    colors = np.loadtxt(Path(__file__).parent / "shapes_colors.txt", dtype=np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)], palette[VOID] = colors, 224
    for folder in ("image", "label", "list"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split, (name, count) in enumerate(counts.items()):
        lines = []
        for index in tqdm(range(count), f"shapes {name}", disable=None):
            image, label = scene(seed, split, index, look, colors)
            stem = f"{name}_{index:04d}"
            Image.fromarray(image).save(out / "image" / f"{stem}.jpg", quality=QUALITY)
            picture = Image.fromarray(label, "P")
            picture.putpalette(palette.tobytes())
            picture.save(out / "label" / f"{stem}.png")
            lines.append(f"image/{stem}.jpg label/{stem}.png\n")
        (out / "list" / f"{name}.txt").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=400, help="training scenes (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation scenes (default: %(default)s)")
    parser.add_argument(
        "--easy", action="store_true", help="small scenes of few objects, whose colours hint at the class"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: this file's)")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: take 0 or more")
    try:
        write(
            arguments.out,
            arguments.seed,
            {"train": arguments.train, "val": arguments.val},
            EASY if arguments.easy else Look(),
        )
    except OSError as error:
        print(f"error: cannot write {arguments.out} ({error.strerror})", file=sys.stderr)
        sys.exit(2)
    print(f"shapes: {arguments.train} + {arguments.val} scenes of seed {arguments.seed} in {arguments.out}")


if __name__ == "__main__":
    main()
