"""Take CamVid as it is published with the SegNet tutorial (480 x 360, 11 classes) to the project's lists.

    python dataset/camvid/prepare.py CAMVID_FOLDER

The folder holds train/, trainannot/, val/, valannot/ (and test/, testannot/) and train.txt, val.txt (test.txt),
whose lines name files of another machine (/SegNet/CamVid/train/x.png); only the last two parts of each path count.
Links the folders into dataset/camvid and writes dataset/camvid/list.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from util.data.lists import read_list, read_text
from util.errors import UserError
from util.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent.parent
SPLITS = ("train", "val", "test")


def relative(line: str, source: str) -> str:
    """`/SegNet/CamVid/train/x.png /SegNet/CamVid/trainannot/x.png` -> `train/x.png trainannot/x.png`"""
    paths = [Path(field).parts[-2:] for field in line.split()]
    if len(paths) != 2 or any(len(parts) != 2 for parts in paths):
        raise UserError(f"{source}: expected `FOLDER/image.png FOLDER/label.png`, found {line[:80]!r}")
    return " ".join("/".join(parts) for parts in paths)


def prepare(folder: Path, out: Path) -> None:
    lists = {split: folder / f"{split}.txt" for split in SPLITS if split != "test" or (folder / "test.txt").exists()}
    (out / "list").mkdir(parents=True, exist_ok=True)
    for split, path in lists.items():
        lines = [relative(line, str(path)) for line in read_text(path, "CamVid") if line.strip()]
        for name in sorted({field.split("/")[0] for line in lines for field in line.split()}):
            link = out / name
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                link.symlink_to((folder / name).resolve(), target_is_directory=True)
        written = out / "list" / f"{split}.txt"
        with atomic_write(written) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            read_list(file.name, "CamVid", str(out))  # every file is there, or an error says which is not
        print(f"{written}: {len(lines)} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "dataset" / "camvid", help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        prepare(arguments.folder, arguments.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
