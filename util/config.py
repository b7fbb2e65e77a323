"""A YAML file and overrides -> a checked, typed, read-only Config (its keys: util/keys)."""

import difflib
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from util.errors import UserError, first_line
from util.keys import Config, Data

__all__ = ["Config", "Data", "load", "parse_yaml"]

MOST_FAULTS = 20  # that are explained
RETIRED = Path(__file__).with_name("retired_keys.yaml")


class _Loader(yaml.SafeLoader):
    """SafeLoader with NUMBERS, that refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the parent class reports it
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# Numbers as everybody writes them. In YAML 1.1, 1e-3 is text, 010 is 8 and 1:30 is 90: here 1e-3 is
# a number, and the others are text, which no key takes for a number.
NUMBERS = {"int": r"[-+]?(0|[1-9]\d*)", "float": r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in NUMBERS]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for kind, pattern in NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^{pattern}$"), list("-+.0123456789"))


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; `source` names it in errors. Raises UserError with the line of the fault."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{source}{where}: not readable as YAML ({problem})") from None


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's sections as nested dicts, merged over those of the file that its `base:` key names."""
    try:
        if path.resolve() in seen:
            raise UserError(f"{path}: base leads back to the file itself; break the circle")
        if path.exists() and not path.is_file():  # a device may have no end
            raise UserError(f"config file {path} is no regular file; name a YAML file")
        text = path.read_text(encoding="utf-8-sig")
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


def defaults(model: type[BaseModel] | None = None, prefix: str = "") -> dict[str, Any]:
    """Each known key's default by its dotted name; None for a key that has none."""
    found: dict[str, Any] = {}
    for name, field in (model or Config).model_fields.items():
        key = f"{prefix}{field.alias or name}"
        found[key] = None if field.is_required() else field.get_default(call_default_factory=True)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= defaults(kind, f"{key}.")
    return found


def _nearest(key: str) -> str | None:
    """The known key most like `key`: by its own name first, then by its section."""

    def likeness(known: str) -> float:
        pairs = zip(key.lower().rpartition("."), known.lower().rpartition("."), strict=True)
        section, _, name = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return name + 0.1 * section

    best = max(defaults(), key=likeness)
    return best if likeness(best) > 0.7 else None


def _key(error: dict[str, Any]) -> str:
    return ".".join(str(part) for part in error["loc"] if "[" not in str(part))  # those are kinds, of keys with several


def _explain(error: dict[str, Any]) -> str:
    """One of pydantic's errors in terms of the YAML file."""
    key = _key(error)
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "extra_forbidden":
        retired = yaml.safe_load(RETIRED.read_text())
        if key in retired:
            inner = [f"{key}.{name}" for name in error["input"]] if isinstance(error["input"], dict) else []
            hints = [f"{name}: {retired[name]}" for name in inner if name in retired]
            return "; ".join(hints) or f"{key}: {retired[key]}"
        near = _nearest(key)
        return f"unknown key {key}" + (f" (did you mean {near}?)" if near else "")
    message = error["msg"].removeprefix("Value error, ")
    if not key or isinstance(error["input"], dict | BaseModel):
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, not {error['input']!r:.60}"


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read `path`, apply `overrides` ([key, value, ...]; the last one counts), check, fill empty paths.

    Raises UserError that lists the faults, not only the first.
    """
    tree = _apply_overrides(_read_file(Path(path)), overrides or [])
    if "check" in tree:
        raise UserError(f"{path}: check is no key of a config; write --check on the command line")
    _read_classes(tree)
    try:
        return _derive(Config.model_validate(tree))
    except ValidationError as errors:
        found = errors.errors(include_url=False)
        faults = [_explain(error) for error in found[:MOST_FAULTS]]  # each looks for the nearest key
        faults += [f"and {len(found) - MOST_FAULTS} more"] * (len(found) > MOST_FAULTS)
        source = "command line" if {_key(error) for error in found} <= {*(overrides or [])[::2]} else path
        raise UserError(f"{source}: {'; '.join(faults)}") from None


def _read_classes(tree: dict[str, Any]) -> None:
    """Put the content of a file that DISTILL.teacher_classes names in its place."""
    distill = tree.get("DISTILL")
    value = distill.get("teacher_classes") if isinstance(distill, dict) else None
    contents = [_read_file(Path(v).expanduser()) if isinstance(v, str) else v for v in _listed(value)]
    if contents != _listed(value):
        distill["teacher_classes"] = contents if isinstance(value, list) else contents[0]


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _derive(cfg: Config) -> Config:
    """Fill what is empty and follows from other keys: the window, the paths of checkpoint, results and teacher."""
    train, test, distill = cfg.train, cfg.test, cfg.distill
    folder = Path(train.save_path)
    result = (folder.parent if folder.name == "model" else folder) / ("teacher/result" if test.teacher else "result")
    derived = {
        "test_h": test.test_h or train.train_h,
        "test_w": test.test_w or train.train_w,
        "model_path": test.model_path or str(folder / f"train_epoch_{train.epochs}.pth"),
        "save_folder": test.save_folder or str(result),
    }
    if distill and not distill.teacher_path:
        # Its own teacher does not matter, and may be this config: a path given ends the chain.
        teacher = load(distill.teacher_config, ["DISTILL.teacher_path", "unused"])
        of_teacher = {"teacher_layers": teacher.train.layers, "teacher_backbone": teacher.train.backbone}
        distill = distill.model_copy(update={"teacher_path": teacher.test.model_path, **of_teacher})
    return cfg.model_copy(update={"test": test.model_copy(update=derived), "distill": distill})
