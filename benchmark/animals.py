"""The runs on animals: PROTOCOL.md, On a GPU. Tuning tasks, and the final ones with what tuning chose.

A method's ten tuning runs are six learning rates, then four variants at the best of those. Final
tasks exist once all of their method's (and their teacher's) tuning is recorded.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.plan import AUX_MSE, DISTILL, HINTS, KL, PER_BATCH, Overrides, Task

SEEDS, TUNING_SEED = (10, 11, 12), 0
HELD_OUT = 5  # every fifth of the training images is held out of tuning
BASE_LRS, HEADS = (0.0007, 0.002, 0.006), (2, 10)
RATES = {(r, h): {"TRAIN.base_lr": r, "TRAIN.head_lr_factor": h} for r in BASE_LRS for h in HEADS}
TEACHER_RATES = ((0.0007, 10), (0.002, 2), (0.002, 10))
EPOCHS = {"pspnet50": 45, "pspnet18": 30, "pspnet50_18": 30}
# Of every run, before its own: what the plan was written for.
PLANNED = {"TRAIN.optimizer": "sgd", "TRAIN.weight_decay": 1e-4, "TRAIN.batch_size": 16}
PLANNED |= {"DATA.unlabelled_list": "", PER_BATCH: 0}
COMPILED = 1.48  # steps of the student alone in the time of a distilled one: results/step-h100.json
OTHER_TEACHER = "teacher, other images"
TEMPERATURE = "DISTILL.temperature"
NO_CACHE = {"DISTILL.cache": ""}  # for outputs that no other run shares, or that are too large


class Recipe(NamedTuple):
    """Weights and temperatures of the distillation terms."""

    kl: float = 0
    aux_mse: float = 0
    nfd: float = 0
    cwd: float = 0
    temperature: float = 2  # of kl
    cwd_temperature: float = 4

    def scaled(self, weight: float = 1, temperature: float = 1) -> "Recipe":
        weights, temperatures = self[:4], self[4:]
        return Recipe(*(weight * w for w in weights), *(temperature * t for t in temperatures))

    def keys(self) -> Overrides:
        hints = [f"{{layer: layer4, loss: nfd, weight: {self.nfd:g}}}"] * (self.nfd > 0)
        cwd = f"{{layer: logits, loss: cwd, weight: {self.cwd:g}, temperature: {self.cwd_temperature:g}}}"
        hints += [cwd] * (self.cwd > 0)
        keys = {KL: round(self.kl, 6), AUX_MSE: round(self.aux_mse, 6), HINTS: f"[{', '.join(hints)}]"}
        return keys | {TEMPERATURE: self.temperature} | (NO_CACHE if self.nfd else {})  # layer4 takes 2.6 MB a crop


RECIPES = {
    "default": Recipe(kl=1, aux_mse=1),
    "kl": Recipe(kl=1),
    "nfd": Recipe(nfd=1),
    "aux_mse": Recipe(aux_mse=1),
    "cwd": Recipe(cwd=3),
    "nfd+aux_mse": Recipe(nfd=1, aux_mse=1),
    "kl+aux_mse+cwd": Recipe(kl=1, aux_mse=1, cwd=3),
}
METHODS = ("student", *RECIPES)
FIRST, SECOND, LAST = ("default", "kl", "nfd"), ("aux_mse", "cwd"), ("nfd+aux_mse", "kl+aux_mse+cwd")
STUDENT_VARIANTS = {
    f"{key} {value:g}": {f"TRAIN.{key}": value}
    for key, value in (("weight_decay", 0.0005), ("weight_decay", 0.001), ("aux_weight", 0.2), ("aux_weight", 1.0))
}
QUESTIONS: dict[str, Overrides] = {  # of kl, each one change of its best setting; kl_questions adds more
    "kl, standardised": {"DISTILL.standardise": True, KL: 9, TEMPERATURE: 2},
    "kl, unlabelled": {PER_BATCH: 16, **NO_CACHE},
    "kl, unpadded": {"DISTILL.mask": "unpadded"},
    "kl, other teacher": NO_CACHE,
    "kl, where right": {},
    "kl, full size": {},
}
TEMPERATURES = (1, 2, 4)
QUESTION_NAMES = ("kl, halved", *(f"kl, T {t}" for t in TEMPERATURES), *QUESTIONS)
SCRIPTS = {"kl, where right": "benchmark/kl/train_where_right.py", "kl, full size": "benchmark/kl/train_full_size.py"}

Score = Mapping[str, float]  # of the tuning runs that are recorded, by their names


def scores_of(tuned: Mapping[str, Any]) -> Score:
    """tuned: what animals_tuning.json holds. A run that failed counts 0."""
    return dict.fromkeys(tuned["failed"], 0.0) | {entry["method"]: entry["mIoU"] for entry in tuned["runs"]}


def rates(method: str) -> dict[str, Overrides]:
    """The runs over learning rates by their names."""
    recipe = RECIPES[method].keys() if method in RECIPES else {}
    chosen = TEACHER_RATES if method == "teacher" else RATES
    return {rate_name(method, *rate): {**recipe, **RATES[rate]} for rate in chosen}


def rate_name(method: str, rate: float, heads: float) -> str:
    return f"{method}, {rate:g} x {heads:g}"


def variants(method: str, at: Overrides) -> dict[str, Overrides]:
    """The four runs at the best learning rates `at`, by their names."""
    if method == "teacher":
        return {}
    if method == "student":
        return {f"{method}, {name}": {**at, **keys} for name, keys in STUDENT_VARIANTS.items()}
    recipe = RECIPES[method]
    scales = {f"weight x {name}": recipe.scaled(weight=w) for name, w in (("1/3", 1 / 3), ("3", 3))}
    if recipe.kl or recipe.cwd:
        scales |= {f"T x {name}": recipe.scaled(temperature=t) for name, t in (("1/2", 0.5), ("2", 2))}
    else:
        scales |= {f"weight x {name}": recipe.scaled(weight=w) for name, w in (("1/10", 0.1), ("10", 10))}
    return {f"{method}, {name}": {**at, **scaled.keys()} for name, scaled in scales.items()}


def best(names: Sequence[str], score: Score) -> str | None:
    """The name with the highest score, the first of equal ones; None while one is not recorded."""
    return max(names, key=score.__getitem__) if all(name in score for name in names) else None


def candidates(method: str, score: Score) -> dict[str, Overrides]:
    """The tuning runs of `method` that are known so far."""
    found = rates(method)
    first = best([*found], score)
    return {**found, **(variants(method, found[first]) if first else {})}


def choice(method: str, score: Score) -> str | None:
    """The name of the chosen run; None while the tuning of `method` goes on."""
    known = candidates(method, score)
    return best([*known], score) if best([*rates(method)], score) else None


def chosen(method: str, score: Score) -> Overrides | None:
    name = choice(method, score)
    return candidates(method, score)[name] if name else None


def tuning(method: str, score: Score) -> Iterator[Task]:
    """The tasks of seed 0 on the images that are not held out."""
    common = {"seed": TUNING_SEED, "images": "tune"}
    if method in RECIPES:
        if not (taught_by := choice("teacher", score)):
            return
        common |= {"script": DISTILL, "run": "pspnet50_18", "teacher": taught_by}
    else:
        depth = 50 if method == "teacher" else 18
        common |= {"script": f"train_{depth}.py", "run": f"pspnet{depth}"}
    for name, overrides in candidates(method, score).items():
        yield Task(name, overrides=overrides, **common)


def final(method: str, score: Score, /, **more) -> Iterator[Task]:
    """A task for each seed (the teacher has one), with the chosen settings; more: what it has of its own."""
    keys = chosen(method, score)
    if keys is None:
        return
    depth = {"teacher": "50", "student": "18"}.get(method, "50_18")
    task = Task(method, SEEDS[0], f"train_{depth}.py", f"pspnet{depth}", keys)._replace(**more)
    for seed in SEEDS[:1] if method == "teacher" else SEEDS:
        yield task._replace(seed=seed)


def kl_questions(score: Score) -> Iterator[Task]:
    """Why kl helps or does not: PROTOCOL.md, (a) to (e)."""
    keys = chosen("kl", score)
    if keys is None:
        return
    weights = {"DISTILL.weights.ce": 0.5, "DISTILL.weights.aux_ce": 0.2, KL: keys[KL] / 2}
    temperatures = {f"kl, T {t}": {TEMPERATURE: t} for t in TEMPERATURES if t != keys[TEMPERATURE]}
    yield from final("teacher", score, method=OTHER_TEACHER, images="other")
    for method, changed in {"kl, halved": weights, **temperatures, **QUESTIONS}.items():
        taught_by = OTHER_TEACHER if method == "kl, other teacher" else "teacher"
        script = SCRIPTS.get(method, DISTILL)
        yield from final("kl", score, method=method, overrides={**keys, **changed}, script=script, teacher=taught_by)


def ordered(score: Score, epochs: Mapping[str, int]) -> Iterator[Task]:
    """All tasks that can be planned so far, the most important first. epochs: of each run's config."""

    def both(methods: Sequence[str]) -> Iterator[Task]:
        for kind in (tuning, final):
            for method in methods:
                yield from kind(method, score)

    yield from both(("teacher", "student"))
    yield from both(FIRST)
    for name, times in (("student_double", 2), ("student_equal_time", COMPILED)):
        yield from final("student", score, method=name, epochs=math.ceil(times * epochs["pspnet18"]))
    yield from both(SECOND)
    yield from kl_questions(score)
    yield from both(LAST)


def image_lists(split: Path) -> dict[str, list[str]]:
    """The lines of each list, from the names in `split`."""
    train, aug, val = ((split / f"{name}.txt").read_text().split() for name in ("train", "train_aug", "val"))
    others = [name for name in aug if name not in {*train}]
    names = {
        "train": train,
        "val": val,
        "held_out": train[HELD_OUT - 1 :: HELD_OUT],
        "other": others[::6][: len(train)],
    }
    names["tune"] = [name for name in train if name not in {*names["held_out"]}]
    lines = {name: [f"image/{n}.jpg label/{n}.png" for n in found] for name, found in names.items()}
    return lines | {"unlabelled": [f"image/{n}.jpg" for n in others]}
