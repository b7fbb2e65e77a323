"""What DISTILL.teacher_path names: a checkpoint, torchvision:NAME, torchvision:NAME@FILE, hf:FOLDER or hf:NAME."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from util import checkpoint
from util.errors import UserError, suggest
from util.keys import Distill

KINDS = ("torchvision", "hf")
IMAGENET = "imagenet"  # published weights of DISTILL.teacher_backbone (or teacher_layers), for a teacher of features


class Source(NamedTuple):
    kind: str  # checkpoint, or one of KINDS
    name: str  # the network's name, or a folder
    file: str | None = None  # of the weights


def parse(path: str) -> Source:
    """Raises UserError for a kind that is near one of KINDS, and for an empty name."""
    kind, colon, rest = path.partition(":")
    if not colon or checkpoint.exists(path):
        return Source("checkpoint", path, path)
    if kind not in KINDS:
        if "/" not in kind and not Path(path).suffix:
            raise UserError(f"DISTILL.teacher_path {path}: unknown kind {kind}; {suggest(kind, KINDS)}")
        return Source("checkpoint", path, path)
    name, at, file = rest.partition("@") if kind == "torchvision" else (rest, "", "")
    if not name or (at and not file):
        raise UserError(f"DISTILL.teacher_path {path} is cut short; write torchvision:NAME, ...@FILE, or hf:FOLDER")
    if kind == "hf":
        name = os.path.expanduser(name)  # noqa: PTH111 - Path would drop the ./ of a folder
    return Source(kind, name, str(Path(file).expanduser()) if file else None)


def is_one_checkpoint(distill: Distill) -> bool:
    """Whether the teacher is one network of ours, whose scores are taken as they are."""
    paths = distill.teachers
    return len(paths) == 1 and distill.teacher_classes is None and parse(paths[0]).kind == "checkpoint"


def digest(paths: Sequence[str]) -> str | None:
    """SHA-256 of the teachers' files; of what a hub or torchvision would download, the name alone.

    None where one checkpoint does not exist.
    """
    parts = [_digest(parse(path)) for path in paths]
    if len(parts) == 1 or None in parts:
        return None if None in parts else parts[0]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(source: Source) -> str | None:
    if source.name == IMAGENET:
        return _of_text(IMAGENET)
    if source.file:
        if not checkpoint.exists(source.file):
            return None
        own = _of_file(Path(source.file))
        return own if source.kind == "checkpoint" else _of_text(f"{source.name} {own}")
    folder = Path(source.name)
    if source.kind == "hf" and folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return _of_text(" ".join(f"{path.name} {_of_file(path)}" for path in files))
    return _of_text(f"{source.kind} {source.name}")


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
