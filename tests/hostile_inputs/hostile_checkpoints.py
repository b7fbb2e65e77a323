"""Broken and hostile checkpoints. Their network is one small layer: reading is what is tried, not size."""

import io
import pickle
import warnings
import zipfile
from types import SimpleNamespace

import torch
from hostile import Code, cases, cut, flip, zero_tail
from torch import nn


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of sparse and quantized tensors
        torch.save(content, buffer, **options)
    return buffer.getvalue()


def layer() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Linear(30, 20)
    net.layers = 18  # of the ResNet, for messages
    return net


STATE = layer().state_dict()
WHOLE = saved({"epoch": 1, "state_dict": STATE})
LEGACY = saved({"epoch": 1, "state_dict": STATE}, _use_new_zipfile_serialization=False)


def with_weight(weight) -> bytes:
    return saved({"state_dict": {**STATE, "weight": weight}})


def packed(content: bytes, compression: int, blank: int = 0) -> bytes:
    """The archive written anew, with an entry of `blank` zero bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/9", bytes(blank))
    return buffer.getvalue()


def endless() -> dict:
    loop: dict = {"a": 1}
    loop["state_dict"] = loop
    return loop


def legacy_of(numel: int) -> bytes:
    """A file of the old format whose pickle claims a storage of `numel` values."""
    return LEGACY.replace(pickle.dumps(600, 2)[2:-1], pickle.dumps(numel, 2)[2:-1])


CHECKPOINTS = cases(
    {
        "as saved": ("works", WHOLE),
        "old format": ("works", LEGACY),
        "weights alone": ("works", saved(STATE)),
        "float16": ("works", saved({"state_dict": {k: v.half() for k, v in STATE.items()}})),
        "prefix module.": ("works", saved({"state_dict": {f"module.{k}": v for k, v in STATE.items()}})),
        "nothing": ("not a", b""),
        "zero bytes": ("not a", bytes(3000)),
        "text": ("not a", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "another archive": ("not a", packed(WHOLE, 0)[:400] + WHOLE[-22:]),
        "a list": ("holds a list", saved([1, 2])),
        "a tensor": ("holds a Tensor", saved(torch.zeros(3))),
        "nothing in it": ("no state_dict", saved({})),
        "no weights": ("no state_dict", saved({"epoch": 3})),
        "empty weights": ("no state_dict", saved({"state_dict": {}})),
        "weights that are a list": ("no state_dict", saved({"state_dict": list(STATE.values())})),
        "weights that are numbers": ("no state_dict", saved({"state_dict": {"weight": 1.0}})),
        "names that are numbers": ("no state_dict", saved({"state_dict": {1: STATE["weight"]}})),
        "itself in it": ("no state_dict", saved(endless())),
        "missing key": ("missing bias", saved({"state_dict": {"weight": STATE["weight"]}})),
        "unknown key": ("unknown extra", saved({"state_dict": {**STATE, "extra": STATE["bias"]}})),
        "line end in a key": ("unknown", saved({"state_dict": {**STATE, "a\nerror: b": STATE["bias"]}})),
        "other keys": ("missing weight, bias", saved({"state_dict": {f"fc.{k}": v for k, v in STATE.items()}})),
        "turned": (r"weight is \(30, 20\), not \(20, 30\)", with_weight(STATE["weight"].T)),
        "no dimension": (r"weight is \(\)", with_weight(torch.tensor(1.0))),
        "NaN": ("not finite, in weight", with_weight(STATE["weight"] / 0 * 0)),
        "infinity": ("not finite, in weight", with_weight(torch.full((20, 30), float("inf")))),
        "sparse": ("no state_dict", with_weight(STATE["weight"].to_sparse())),
        "complex": ("no state_dict", with_weight(STATE["weight"].to(torch.complex64))),
        "without values": ("no state_dict", with_weight(torch.empty(20, 30, device="meta"))),
        "absurd size in few bytes": ("weight is", with_weight(torch.zeros(1).expand(10**6, 10**6))),
        "absurd float16": ("weight is", with_weight(torch.zeros(1).half().expand(10**6, 10**6))),
        "absurd unknown key": ("unknown x", saved({"state_dict": {**STATE, "x": torch.zeros(1).expand(10**12)}})),
        "absurd storage": ("not a|cut short", legacy_of(2**40)),
        "a module": ("refused: it wants to run torch.nn", saved(layer())),
        "numpy": ("no state_dict of tensors", saved({"state_dict": {"weight": STATE["weight"].numpy()}})),
        "plain pickle": ("not a|refused", pickle.dumps({"state_dict": {}})),
    },
    {
        "cut ": ("", lambda seed: cut(WHOLE, seed), 10),
        "zeros ": ("", lambda seed: zero_tail(WHOLE, seed), 4),
        "flip ": ("either", lambda seed: flip(WHOLE, seed), 16),
        "old format cut ": ("", lambda seed: cut(LEGACY, seed), 6),
        "code, protocol ": ("refused|not a", lambda seed: saved({"state_dict": Code()}, pickle_protocol=seed), 6),
        "code in a pickle, protocol ": ("refused|not a", lambda seed: pickle.dumps(Code(), seed), 6),
    },
)


def resumes() -> list[SimpleNamespace]:
    """Contents that torch reads and no run can go on from; `content(good)` changes a good one."""

    def other(key, value):
        return lambda good: {**good, key: value}

    def optimizer(change):
        def make(good):
            state = pickle.loads(pickle.dumps(good["optimizer"]))
            change(state)
            return {**good, "optimizer": state}

        return make

    found = {f"without {key}": lambda good, key=key: {k: v for k, v in good.items() if k != key}
             for key in ("step", "settings", "state_dict", "optimizer")}  # fmt: skip
    found |= {
        "settings that are text": other("settings", "fast"),
        "optimizer of another kind": other("optimizer", {"state": {}, "param_groups": []}),
        "optimizer without groups": optimizer(lambda state: state.pop("param_groups")),
        "optimizer of fewer weights": optimizer(lambda state: state["param_groups"][0]["params"].pop()),
        "weights of another network": other("state_dict", {"weight": torch.zeros(2)}),
    }
    return [SimpleNamespace(name=name, content=content) for name, content in found.items()]


RESUMES = resumes()
