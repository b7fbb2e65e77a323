"""The recorded runs in benchmark/results: scores, pixel counts, and the settings they are for."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from util import config, files
from util.errors import UserError

# Keys that cannot change a score: where files lie, how they are loaded, what is logged or saved.
WITHOUT_EFFECT = {
    "DATA": {"data_root", "train_list", "val_list", "unlabelled_list", "names_path", "colors_path"} | {"video_block"},
    "TRAIN": {"workers", "batch_size_val", "print_freq", "save_freq", "keep", "save_path", "resume", "evaluate"}
    | {"gradient_shares", "pictures"},
    "DISTILL": {"teacher_path", "teacher_config", "check_images", "cache"},
    "TEST": {
        "test_list",
        "split",
        "has_prediction",
        "index_start",
        "index_step",
        "model_path",
        "save_folder",
        "compare",
    },
}


TEACHER = "teacher's "  # before the names of the teacher's settings

Settings = dict[str, Any]  # by the dotted names of the keys


def settings_of(cfg: config.Config) -> Settings:
    """All keys of a config that can change the score, flat, with their values."""
    tree = cfg.model_dump(by_alias=True)
    if cfg.distill:  # a hint's options without the defaults: they may get more of them
        tree["DISTILL"]["hints"] = [hint.model_dump(exclude_defaults=True) for hint in cfg.distill.hints]
        tree["DISTILL"] |= {f"weights.{name}": value for name, value in tree["DISTILL"].pop("weights").items()}
    return {
        f"{section}.{key}": value
        for section, names in WITHOUT_EFFECT.items()
        for key, value in (tree[section] or {}).items()
        if key not in names
    }


def without_defaults(settings: Settings) -> Settings:
    """The settings other than the default, so that a key added later changes none of them."""
    known = config.defaults()
    return {key: value for key, value in settings.items() if value != known.get(key.removeprefix(TEACHER))}


def differences(recorded: Settings, planned: Settings) -> list[str]:
    """The settings that differ, in words; a key that one side lacks has its default there."""
    known, found = config.defaults(), []
    for key in {**recorded, **planned}:
        default = known.get(key.removeprefix(TEACHER))
        then, now = recorded.get(key, default), planned.get(key, default)
        if then != now:
            found.append(f"{key} was {then!r} and is {now!r}")
    return found


class RunRecord:
    """The recorded runs of one dataset, in PATH.json, and their pixel counts, in PATH.npz."""

    def __init__(self, path: Path, new: bool = False):
        """new: it may begin here. Raises UserError where there is no record to continue."""
        self.path = path
        self.content: dict[str, Any] = {"runs": []}
        self.pixels: dict[str, np.ndarray] = {}
        if new and not path.with_suffix(".json").exists():
            return
        if not path.with_suffix(".json").is_file():
            raise UserError(f"{path}.json does not exist; it holds the pace of a step, which equal time follows from")
        self.content = json.loads(path.with_suffix(".json").read_text())
        with np.load(path.with_suffix(".npz")) as saved:
            self.pixels = dict(saved)

    def find(self, method: str, seed: int) -> dict[str, Any] | None:
        return next((e for e in self.content["runs"] if (e["method"], e["seed"]) == (method, seed)), None)

    def mismatches(self, planned: Mapping[tuple[str, int], Settings]) -> Iterator[tuple[dict[str, Any], str]]:
        """Each recorded run whose settings are not the planned ones, and what differs."""
        for entry in self.content["runs"]:
            settings = planned.get((entry["method"], entry["seed"]))
            if settings is None:
                yield entry, "not planned"
            elif found := differences(entry["config"]["settings"], settings):
                yield entry, "; ".join(found)

    def add(self, entry: dict[str, Any], pixels: np.ndarray) -> None:
        self.content["runs"].append(entry)
        self.pixels[f"{entry['method']} {entry['seed']}"] = pixels
        self.write()

    def failed(self, method: str, seed: int) -> bool:
        """Whether a run that fails is a result; here it ends the rest."""
        return False

    def drop(self, entry: dict[str, Any]) -> None:
        self.content["runs"].remove(entry)
        self.pixels.pop(f"{entry['method']} {entry['seed']}", None)

    def write(self) -> None:
        """A run a line, so that two versions of the file can be compared."""
        with files.atomic_write(self.path.with_suffix(".npz")) as file:
            np.savez_compressed(file, **self.pixels)
        runs = ",\n".join(map(json.dumps, self.content["runs"]))
        rest = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.content.items() if key != "runs"]
        files.replace_text(self.path.with_suffix(".json"), "{" + ",\n".join([*rest, f'"runs": [\n{runs}\n]']) + "}\n")


@contextlib.contextmanager
def locked(record: Path) -> Iterator[None]:
    """Raises UserError when another process writes `record`."""
    with (record.parent / f".{record.name}.lock").open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process writes {record}.json; --jobs N makes several runs at a time") from None
        yield
