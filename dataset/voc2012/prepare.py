"""Make dataset/voc2012 from the official archives: PASCAL VOC 2012 with SBD's additional labels ("enhanced").

    python dataset/voc2012/prepare.py --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz
    python dataset/voc2012/prepare.py --voc VOCdevkit/VOC2012 --sbd benchmark_RELEASE
    python dataset/voc2012/prepare.py --download FOLDER

Writes image/ (links into a folder, copies out of an archive), label/ (palette PNGs of class indices, 255 void) and
list/train_aug.txt (10,582 images), list/train.txt (1,464) and list/val.txt (1,449). Training labels are VOC's own
where they exist, SBD's otherwise; no val image is among them. Started again it goes on where it stopped. The sources
are only read.

SBD: Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011.
"""

import argparse
import io
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from util.errors import UserError, first_line
from util.files import atomic_write, replace_text

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "dataset" / "voc2012"
COUNTS = {"train_aug": 10582, "train": 1464, "val": 1449}
CLASSES, VOID = 21, 255

SPLIT = re.compile(r"ImageSets/Segmentation/(train|val)\.txt$")
IMAGE = re.compile(r"JPEGImages/([^/]+)\.jpg$")
LABEL = re.compile(r"SegmentationClass/([^/]+)\.png$")
MAT = re.compile(r"(?:^|/)cls/([^/]+)\.mat$")

Content = Path | bytes


def members(source: Path, pattern: re.Pattern, skip: set[str] = frozenset()) -> Iterator[tuple[str, Content]]:
    """(name, content) of the files in a folder or an archive whose path `pattern` finds; its group is the name.

    A folder gives paths, an archive bytes, in one pass from front to back. Raises UserError for a source that is
    neither, or is cut short.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            found = pattern.search(path.relative_to(source.parent).as_posix())
            if found and found[1] not in skip:
                yield found[1], path
        return
    try:
        with tarfile.open(source) as tar:
            for member in tar:
                found = pattern.search(member.name)
                if found and member.isfile() and found[1] not in skip:
                    yield found[1], tar.extractfile(member).read()
    except FileNotFoundError:
        raise UserError(f"{source} does not exist; name the official archive or its unpacked folder") from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = first_line(error)
        raise UserError(f"{source} is no archive, or is cut short ({reason}); download it again") from None


def as_bytes(content: Content) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def done(folder: Path) -> set[str]:
    """Names that an earlier run has written, or linked to what is still there."""
    return {path.stem for path in folder.iterdir() if not path.name.startswith(".") and path.exists()}


def splits(voc: Path) -> dict[str, list[str]]:
    """VOC's own segmentation splits, train and val."""
    found = {name: as_bytes(content).decode().split() for name, content in members(voc, SPLIT)}
    missing = [name for name in ("train", "val") if not found.get(name)]
    if missing:
        raise UserError(f"{voc} has no ImageSets/Segmentation/{missing[0]}.txt; is it VOC2012's trainval archive?")
    return found


def decode_mat(content: Content, name: str) -> NDArray[np.uint8]:
    """GTcls.Segmentation of one of SBD's label files, (H, W)."""
    try:
        return loadmat(io.BytesIO(as_bytes(content)))["GTcls"]["Segmentation"][0, 0].astype(np.uint8)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise UserError(f"SBD's cls/{name}.mat cannot be read ({error}); unpack or download it again") from None


def palette() -> bytes:
    colors = np.zeros((256, 3), np.uint8)
    colors[:CLASSES] = np.loadtxt(Path(__file__).parent / "voc2012_colors.txt", dtype=np.uint8)
    colors[VOID] = 224, 224, 192
    return colors.tobytes()


def save_label(label: NDArray[np.uint8], path: Path, colors: bytes) -> None:
    picture = Image.fromarray(label, "P")
    picture.putpalette(colors)
    with atomic_write(path) as file:
        picture.save(file, "PNG")


def take_sbd(sbd: Path, out: Path, own: set[str]) -> set[str]:
    """Convert SBD's labels of images that VOC itself (`own`) has none for -> the names of all of those."""
    colors, names, ready = palette(), set(), done(out / "label")
    for name, content in tqdm(members(sbd, MAT, skip=own), "SBD labels", unit="", disable=None):
        names.add(name)
        if name not in ready:
            save_label(decode_mat(content, name), out / "label" / f"{name}.png", colors)
    if not names:
        raise UserError(f"{sbd} has no cls/*.mat; is it SBD's benchmark.tgz?")
    return names


def take_voc(voc: Path, out: Path, images: set[str], labels: set[str]) -> None:
    """Link or copy what is wanted of VOC's images and labels."""
    for pattern, folder, wanted in ((IMAGE, "image", images), (LABEL, "label", labels)):
        ready = done(out / folder)
        left = wanted - ready
        for name, content in tqdm(members(voc, pattern, skip=ready), f"VOC {folder}s", unit="", disable=None):
            if name in left:
                left.discard(name)
                path = out / folder / f"{name}{'.jpg' if folder == 'image' else '.png'}"
                if isinstance(content, Path):
                    path.unlink(missing_ok=True)  # a link to what is gone
                    path.symlink_to(content.resolve())
                else:
                    with atomic_write(path) as file:
                        file.write(content)
        if left:
            raise UserError(f"{voc} lacks the {folder} of {min(left)} and {len(left) - 1} more; unpack it whole")


def check(out: Path, lists: dict[str, list[str]]) -> NDArray[np.int64]:
    """Compare every label with its image's size and with the classes -> pixels of each value, (256,)."""
    pixels = np.zeros(256, np.int64)
    for name in tqdm(sorted({n for names in lists.values() for n in names}), "check", unit="", disable=None):
        try:
            with Image.open(out / "image" / f"{name}.jpg") as image, Image.open(out / "label" / f"{name}.png") as label:
                if image.size != label.size or label.mode not in ("P", "L"):
                    raise UserError(f"label of {name}: {label.mode} {label.size}, image {image.size}; delete both")
                counts = np.bincount(np.asarray(label).ravel(), minlength=256)
        except (OSError, SyntaxError) as error:
            raise UserError(f"{name} in {out} cannot be read ({error}); delete its files and start again") from None
        bad = np.flatnonzero(counts[CLASSES:VOID])
        if bad.size:
            raise UserError(f"label of {name} holds the value {bad[0] + CLASSES}; expected 0 .. 20 and 255")
        pixels += counts
    return pixels


def prepare(voc: Path, sbd: Path, out: Path, subset: bool) -> None:
    for folder in ("image", "label", "list"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    own = splits(voc)
    sbd_names = take_sbd(sbd, out, {*own["train"], *own["val"]})
    lists = {"train_aug": sorted({*sbd_names, *own["train"]} - set(own["val"])), **own}
    wrong = [f"{name} {len(lists[name])} instead of {count}" for name, count in COUNTS.items()
             if len(lists[name]) != count]  # fmt: skip
    if wrong and not subset:
        raise UserError(f"the archives are not complete: {', '.join(wrong)} images; --subset takes them as they are")
    take_voc(voc, out, {*lists["train_aug"], *own["val"]}, {*own["train"], *own["val"]})
    pixels = check(out, lists)
    names = (Path(__file__).parent / "voc2012_names.txt").read_text().split()
    for index, name in [*enumerate(names), (VOID, "void")]:
        print(f"{name:14}{pixels[index]:15,} pixels {100 * pixels[index] / pixels.sum():6.2f} %")
    for name, entries in lists.items():  # last: whoever finds a list finds all that it names
        replace_text(out / "list" / f"{name}.txt", "".join(f"image/{n}.jpg label/{n}.png\n" for n in entries))
        print(f"{out / 'list' / name}.txt: {len(entries)} images")


def download(folder: Path) -> tuple[Path, Path]:
    """Get both archives by torchvision's dataset classes, which know addresses and checksums -> VOC, SBD."""
    from torchvision.datasets import SBDataset, VOCSegmentation

    try:
        VOCSegmentation(str(folder), "2012", "trainval", download=True)
        sbd = folder / "sbd"
        SBDataset(str(sbd), mode="segmentation", download=not (sbd / "cls").is_dir())
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"download into {folder} failed ({error}); get the archives by hand, then --voc and --sbd"
        ) from None
    return folder / "VOCdevkit" / "VOC2012", sbd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, help="VOCtrainval archive, or the VOC2012 folder from it")
    parser.add_argument("--sbd", type=Path, help="benchmark.tgz, or the folder from it")
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="get both into FOLDER first")
    parser.add_argument("--out", type=Path, default=HERE, help="default: %(default)s")
    parser.add_argument("--subset", action="store_true", help="accept archives with fewer images than the official")
    arguments = parser.parse_args()
    try:
        voc, sbd = download(arguments.download) if arguments.download else (arguments.voc, arguments.sbd)
        if not (voc and sbd):
            raise UserError("name both sources, --voc and --sbd, or --download FOLDER")
        prepare(voc, sbd, arguments.out, arguments.subset)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
