"""YAML file + command-line overrides -> a checked, typed, read-only config (its keys: util/keys.py)."""

import difflib
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from util import files
from util.errors import UserError
from util.keys import RETIRED, Config, Data

__all__ = ["Config", "Data", "load", "parse_yaml"]


LONGEST = 1 << 20  # characters of a config file
MOST_FAULTS = 20  # that are explained


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses aliases and a key given twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # ten lines of them can stand for a billion values
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not read; base: shares values", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the parent class says so
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; `source` names it in errors. Raises UserError with the line for what is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{where}: not readable as YAML ({problem})") from None


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's sections as nested dicts, laid over those of the file its `base:` key names, if any."""
    try:
        if path.resolve() in seen:
            raise UserError(f"{path}: base leads back to the file itself; break the circle")
        text = files.read_text(path, LONGEST)
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist; see config/ for those that do") from None
    except (OSError, ValueError) as error:
        raise UserError(f"config file {path} cannot be read ({error})") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected the sections DATA, TRAIN, TEST (and DISTILL), found {tree!r:.40}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be the path of a YAML file, not {base!r:.40}")
    return _merge(_read_file(path.parent / base, (*seen, path.resolve())), tree)


def _merge(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs, SECTION.key VALUE; {overrides[-1]} stands alone")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        names = key.split(".")
        if len(names) < 2 or not all(names):
            raise UserError(f"override {key}: write SECTION.key VALUE, for example TRAIN.epochs 2")
        value = parse_yaml(text, f"value of {key}")
        for name in reversed(names):
            value = {name: value}
        tree = _merge(tree, value)
    return tree


def _known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        keys.append(key)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _known_keys(kind, f"{key}.")
    return keys


def _nearest(key: str) -> str | None:
    """The known key most like `key`: by its own name first, then by its section."""

    def likeness(known: str) -> float:
        pairs = list(zip(key.lower().rpartition("."), known.lower().rpartition("."), strict=True))
        section, _, name = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return name + 0.1 * section

    if len(key) > 100:
        return None
    best = max(_known_keys(), key=likeness)
    return best if likeness(best) > 0.7 else None


def _explain(error: dict[str, Any]) -> str:
    """One of pydantic's errors in the words of the YAML file."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "extra_forbidden":
        if key in RETIRED:
            inner = [f"{key}.{name}" for name in error["input"]] if isinstance(error["input"], dict) else []
            hints = [f"{name}: {RETIRED[name]}" for name in inner if name in RETIRED]
            return "; ".join(hints) or f"{key}: {RETIRED[key]}"
        near = _nearest(key)
        return f"unknown key {key}" + (f" (did you mean {near}?)" if near else "")
    message = error["msg"].removeprefix("Value error, ")
    if not key or isinstance(error["input"], dict | BaseModel):
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, not {error['input']!r:.60}"


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read `path`, apply `overrides` ([key, value, key, value, ...]; the last one counts) and check everything.

    Raises UserError that lists the faults, not only the first.
    """
    tree = _apply_overrides(_read_file(Path(path)), overrides or [])
    try:
        return Config.model_validate(tree)
    except ValidationError as errors:
        found = errors.errors(include_url=False)
        faults = [_explain(error) for error in found[:MOST_FAULTS]]
        faults += [f"and {len(found) - MOST_FAULTS} more"] * (len(found) > MOST_FAULTS)
        raise UserError(f"{path}: {'; '.join(faults)}") from None
