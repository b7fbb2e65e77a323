"""Make dataset/animals, seven classes of PASCAL VOC 2012: background, cat, cow, dog, horse, person and sheep.

    python dataset/animals/prepare.py dataset/voc2012 [--longer-side 320]

The folder holds image/NAME.jpg and label/NAME.png with VOC's 21 classes, as
dataset/voc2012/prepare.py leaves them; official images have a longer side of 500, and --longer-side
320 makes them as config/animals expects them (area averaging, JPEG quality 87; labels by nearest
pixel); without it the size is kept. split/ holds the names of the images, each with an animal in
it. Links or writes image/, writes label/ (palette PNGs of the seven classes; the other classes become 255,
void) and list/: train_aug.txt (3,131 images), train.txt (the 437 of them in VOC's own train), others.txt and
unlabelled.txt (the 2,694 others, with and without labels) and val.txt (445).
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from util.data.decode import read_image, read_label
from util.data.lists import read_text
from util.errors import UserError
from util.files import atomic_write, replace_text

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "dataset" / "animals"
NAMES = (HERE / "animals_names.txt").read_text().split()
VOC_NAMES = (ROOT / "dataset" / "voc2012" / "voc2012_names.txt").read_text().split()
VOID = 255


def present(source: Path, folder: str, suffix: str, names: set[str]) -> None:
    """Raises UserError unless source/folder holds a file of each name."""
    try:
        missing = names - {path.stem for path in (source / folder).iterdir() if path.suffix == suffix}
    except OSError:
        raise UserError(f"{source} has no folder {folder}/; make dataset/voc2012 first and name it") from None
    if missing:
        path = source / folder / f"{min(missing)}{suffix}"
        raise UserError(f"{path} does not exist, nor do {len(missing) - 1} more; make {source} whole")


def remap(source: Path, out: Path, names: list[str], longer_side: int | None) -> None:
    """Write out/label, and out/image where `longer_side` is given.

    Raises UserError for an image or a label that cannot be read, or is not of VOC's classes.
    """
    table = np.full(256, VOID, np.uint8)
    table[[VOC_NAMES.index(name) for name in NAMES]] = range(len(NAMES))
    colors = np.full((256, 3), (224, 224, 192), np.uint8)
    colors[: len(NAMES)] = np.loadtxt(HERE / "animals_colors.txt", dtype=np.uint8)
    for name in tqdm(names, "labels", unit="", disable=None):
        path = source / "label" / f"{name}.png"
        image = read_image(source / "image" / f"{name}.jpg", None)
        label = table[read_label(path, image.shape[:2], len(VOC_NAMES), VOID)]
        if not np.any((label > 0) & (label < VOID)):  # every name was chosen for an animal
            raise UserError(f"{path} holds none of {', '.join(NAMES[1:])}; name a folder with VOC's 21 classes")
        if longer_side:
            image, label = shrink(image, longer_side, cv2.INTER_AREA), shrink(label, longer_side, cv2.INTER_NEAREST)
            with atomic_write(out / "image" / f"{name}.jpg") as file:
                Image.fromarray(image).save(file, "JPEG", quality=87)
        picture = Image.fromarray(label, "P")
        picture.putpalette(colors.tobytes())
        with atomic_write(out / "label" / f"{name}.png") as file:
            picture.save(file, "PNG")


def shrink(picture: NDArray[np.uint8], longer_side: int, how: int) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) with a longer side of at most `longer_side`."""
    height, width = picture.shape[:2]
    scale = min(longer_side / max(height, width), 1)
    return cv2.resize(picture, (max(round(width * scale), 1), max(round(height * scale), 1)), interpolation=how)


def prepare(source: Path, out: Path, split: Path, longer_side: int | None = None) -> None:
    if longer_side is not None and longer_side < 1:
        raise UserError(f"--longer-side {longer_side} is no size in pixels; take 1 or more")
    if source.resolve() == out.resolve():
        raise UserError(f"{source} is what this script makes; name the folder of VOC's images and labels")
    lists = {
        name: [line.strip() for line in read_text(split / f"{name}.txt", "--split") if line.strip()]
        for name in ("train_aug", "train", "val")
    }
    names = {name for entries in lists.values() for name in entries}
    for folder, suffix in (("image", ".jpg"), ("label", ".png")):
        present(source, folder, suffix, names)
    link = (out / "image").is_symlink()
    if not longer_side and (out / "image").exists() and not link:
        raise UserError(f"{out / 'image'} holds images that --longer-side made; remove it, or name that size again")
    for folder in ("label", "list"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name in (*lists, "others", "unlabelled"):  # what they list may have been made from another source
        (out / "list" / f"{name}.txt").unlink(missing_ok=True)
    if link:
        (out / "image").unlink()
    if longer_side:
        (out / "image").mkdir(exist_ok=True)
    else:
        (out / "image").symlink_to((source / "image").resolve(), target_is_directory=True)
    remap(source, out, sorted(names), longer_side)
    lines = {name: [f"image/{n}.jpg label/{n}.png" for n in entries] for name, entries in lists.items()}
    labelled = set(lists["train"])
    lines["others"] = [
        line for line, n in zip(lines["train_aug"], lists["train_aug"], strict=True) if n not in labelled
    ]
    lines["unlabelled"] = [line.split()[0] for line in lines["others"]]
    for name, entries in lines.items():  # last: whoever finds a list finds all that it names
        replace_text(out / "list" / f"{name}.txt", "".join(f"{entry}\n" for entry in entries))
        print(f"{out / 'list' / name}.txt: {len(entries)} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=HERE, help="default: %(default)s")
    parser.add_argument("--longer-side", type=int, metavar="N", help="shrink larger images to it; default: keep them")
    parser.add_argument("--split", type=Path, default=HERE / "split", help="folder of names; default: %(default)s")
    arguments = parser.parse_args()
    try:
        prepare(arguments.folder, arguments.out, arguments.split, arguments.longer_side)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
