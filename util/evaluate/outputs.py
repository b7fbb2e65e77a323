"""What outputs are called, and that none replaces an input or another output."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from util.errors import UserError


def output_names(images: Sequence[Path]) -> list[str]:
    """NAME of each image's outputs: its stem, as in semseg, or the shortest path that tells all apart.

    Folders are joined by `_`; images that differ in their suffix alone keep it. An image that stands
    in `images` twice has one name. Raises UserError when nothing tells two images apart.
    """
    if not images:
        return []
    different = len(set(images))
    for suffix in (False, True):
        parts = [(*p.parts[:-1], f"{p.stem}_{p.suffix[1:]}" if suffix else p.stem) for p in images]
        for depth in range(1, max(map(len, parts), default=0) + 1):
            names = ["_".join(part.strip("/") for part in each[-depth:]) for each in parts]
            if len(set(names)) == different:
                return names
    first: dict[str, Path] = {}
    one, other = next((first[n], p) for p, n in zip(images, names, strict=True) if first.setdefault(n, p) != p)
    raise UserError(f"{one} and {other} would have outputs of the same name; rename one")


def check_outputs(written: Iterable[Path], read: Iterable[str | Path | None]) -> None:
    """Raise UserError when a path of `written` is also in `read`, or twice in `written`.

    Links and `..` are followed. To be called before the first byte is written.
    """
    inputs = {Path(path).expanduser().resolve() for path in read if path}
    seen: set[Path] = set()
    for path in written:
        resolved = path.resolve()
        if resolved in inputs:
            raise UserError(f"{path} would be written over, and is an input of this command; write to another folder")
        if resolved in seen:
            raise UserError(f"{path} would be written twice; give the inputs different names, or run them one by one")
        seen.add(resolved)
