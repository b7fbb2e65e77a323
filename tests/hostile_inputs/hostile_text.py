"""Broken and hostile config files and lists."""

import numpy as np
from conftest import CONFIG
from hostile import cases, cut, scatter

GOOD = CONFIG.format(root="data", out="out").encode()
KEYS = [f"{section}.{key}" for section, keys in
        {"DATA": "classes mean data_root", "TRAIN": "layers epochs base_lr weight train_h momentum scale_max",
         "TEST": "scales flip mode base_size model_path"}.items() for key in keys.split()]  # fmt: skip
VALUES = ["[1, [2]]", "{a: 1}", "text", ".nan", "-.inf", "1e999", "-1", "0", "9" * 400, "2020-01-01", "!!set {a}",
          '"\\0"', "", "True", "[[]]", "!!binary aGk=", "[.nan, 1, 1]", "32767"]  # fmt: skip


def wrong_value(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    section, key = rng.choice(KEYS).split(".")
    text = f"base: good.yaml\n{section}:\n  {key}: {rng.choice(VALUES)}\n"
    return text.encode()


def bomb(entry: str, of: str) -> str:
    """Each line stands for nine of the line before."""
    lines = [f"a0: &a0 {entry}"] + [f"a{i}: &a{i} {of.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 10)]
    return "\n".join(lines)


YAML = cases(
    {
        "byte-order mark": ("works", b"\xef\xbb\xbf" + GOOD),
        "Windows line ends": ("works", GOOD.replace(b"\n", b"\r\n")),
        "no line end": ("works", GOOD.rstrip()),
        "empty": ("sections", b""),
        "zero bytes": ("YAML", bytes(500)),
        "UTF-16": ("cannot be read", GOOD.decode().encode("utf-16")),
        "latin-1": ("cannot be read", b"DATA:\n  data_root: K\xf6ln\n"),
        "a list": ("sections", "- DATA\n- TRAIN\n"),
        "text": ("sections", "hello"),
        "two documents": ("YAML", GOOD + b"---\n" + GOOD),
        "tabs": ("line 2", "TRAIN:\n\tepochs: 1\n"),
        "null section": ("TRAIN", "base: good.yaml\nTRAIN:\n"),
        "number as section": ("1", "base: good.yaml\n1: 2\n"),
        "a list as key": ("YAML", "base: good.yaml\n? [a]\n: 1\n"),
        "line end in a key": ("unknown key", 'base: good.yaml\n"a\\nerror: b": 1\n'),
        "terminal codes in a key": ("unknown key", 'base: good.yaml\n"\\e[2Ja": 1\n'),
        "merge bomb": ("line 2", bomb("{k: 1}", "{{<<: [{}]}}")),
        "run a command": ("YAML", "TRAIN: !!python/object/apply:os.system [touch pwned]"),
        "new object": ("YAML", "TRAIN: !!python/object/new:subprocess.Popen [[touch, pwned]]"),
        "a function": ("YAML", "TRAIN: !!python/name:os.system"),
        "a module": ("YAML", "TRAIN: !!python/module:antigravity"),
        "own tag": ("YAML", "TRAIN: !x 1"),
        "deep list": ("YAML", "[" * 20_000),
        "deep map": ("YAML", "{a: " * 20_000),
        "endless digits": ("YAML", "1" * 500_000),
        "unknown keys without end": ("more", "base: good.yaml\n" + "".join(f"k{i}: 1\n" for i in range(20_000))),
        "long unknown key": ("unknown key", f"base: good.yaml\n? {'k' * 100_000}\n: 1\n"),
        "base is itself": ("circle", "base: x.yaml\n"),
        "base is a list": ("base", "base: [a]\n"),
        "base is a folder": ("no regular file", "base: .\n"),
        "base has no end": ("no regular file", "base: /dev/zero\n"),
        "base is gone": ("does not exist", "base: gone.yaml\n"),
        "base is no path": ("cannot be read", 'base: "a\\0b"\n'),
        "base of a long name": ("/xxx", f"base: {'x' * 5000}\n"),
    },
    {
        "cut ": ("", lambda seed: cut(GOOD[:-30], seed), 12),
        "bytes ": ("either", lambda seed: scatter(GOOD, seed), 12),
        "value ": ("either", wrong_value, 24),
    },
)

PAIR = "image/a.jpg label/a.png\n"
MANY = PAIR * 5
LISTS = cases(
    {
        "byte-order mark": ("works", b"\xef\xbb\xbf" + PAIR.encode()),
        "Windows line ends": ("works", MANY.replace("\n", "\r\n")),
        "old Mac line ends": ("works", MANY.replace("\n", "\r")),
        "empty lines": ("works", f"\n\n{PAIR}\n  \n{PAIR}\n\n"),
        "tabs and blanks": ("works", " image/a.jpg \t label/a.png  "),
        "duplicated lines in training": ("works", MANY),
        "dots that stay inside": ("works", "image/../image/./a.jpg label//a.png"),
        "link in data_root": ("works", "link/a.jpg label/a.png"),
        "name in another script": ("works", "image/ä日.jpg label/a.png"),
        "path through a link": ("works", f"{PAIR}link/../secret.jpg label/a.png"),
        "nothing": ("lists no image", b""),
        "blanks": ("lists no image", b" \n\t\n\r\n"),
        "zero bytes": ("line 1", bytes(100)),
        "UTF-16": ("cannot be read as text", PAIR.encode("utf-16")),
        "latin-1": ("cannot be read as text", "image/ä.jpg label/a.png".encode("latin-1")),
        "spaces": ("line 2: .*with a tab between", f"{PAIR}image/my a.jpg label/a.png\n"),
        "quotes": ("line 1: .*with a tab between", '"image/my a.jpg" label/a.png\n'),
        "one path": ("line 6: .*`image label`", f"{MANY}image/a.jpg\n"),
        "three paths": ("line 1: .*`image label`", "image/a.jpg label/a.png 3\n"),
        "commas": ("line 1: .*`image label`", "image/a.jpg,label/a.png\n"),
        "dots": ("works", f"{PAIR}../secret.jpg label/a.png\n"),
        "dots in the label": ("works", "image/a.jpg image/../../secret.jpg\n"),
        "dots through a folder that is none": ("line 1: .*does not exist", "no/../../secret.jpg label/a.png\n"),
        "neighbour of the same beginning": ("line 1: .*does not exist", "../data2/a.jpg label/a.png\n"),
        "device": ("is no file", "/dev/zero /dev/zero\n"),
        "address": ("line 1: .*does not exist", "file:///etc/passwd label/a.png\n"),
        "home": ("line 1: .*does not exist", "~/a.jpg label/a.png\n"),
        "pattern": ("line 1: .*does not exist", "image/*.jpg label/a.png\n"),
        "NUL": ("line 1: .*does not exist", b"image/a\0.jpg label/a.png\n"),
        "terminal codes": ("line 1: .*does not exist", "image/\x1b[2J.jpg label/a.png\n"),
        "long name": ("line 1: .*does not exist", f"{'x' * 5000}/a.jpg label/a.png\n"),
        "long line": ("line 1: .*`image label`", "x " * 100_000),
        "the folder itself": ("is no file", ". label/a.png\n"),
        "other case": ("line 1: .*does not exist", "Image/A.JPG label/a.png\n"),
        "label is gone": ("line 1: .*does not exist", "image/a.jpg label/gone.png\n"),
    },
    {
        "bytes ": ("either", lambda seed: scatter(MANY.encode(), seed), 8),
        "cut ": ("either", lambda seed: cut(MANY.encode(), seed), 8),
    },
)
