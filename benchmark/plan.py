"""What benchmark/results.py runs: the methods, their settings, the order."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

SEEDS = {"camvid": (0, 1, 2), "shapes": (10, 11, 12, 13, 14)}  # shapes: 0 to 2 were used for tuning its settings
SHAPES_LABELS = 400
NEW_LOSS = {"DISTILL.weights.kl": 0, "DISTILL.weights.aux_mse": 0}
DISTILL = "train_50_18.py"
SAME_TIME = "same time"  # the student alone for as long as the default recipe takes

Overrides = Mapping[str, Any]

METHODS: dict[str, tuple[str, Overrides]] = {
    "default": (DISTILL, {}),
    "original": ("benchmark/train_original.py", {}),
    "kl": (DISTILL, {"DISTILL.weights.aux_mse": 0}),
    "aux_mse": (DISTILL, {"DISTILL.weights.kl": 0}),
    "fitnet": (DISTILL, {**NEW_LOSS, "DISTILL.hints": "[{layer: layer4, loss: fitnet, weight: 10}]"}),
    "cwd": (DISTILL, {**NEW_LOSS, "DISTILL.hints": "[{layer: logits, loss: cwd, weight: 3, temperature: 4}]"}),
}
# How the default recipe's gain depends on its settings: shapes, the first two seeds.
SETTINGS: dict[str, Overrides] = {
    **{f"T {t}": {"DISTILL.temperature": t} for t in (1, 4, 8)},
    **{f"kl {w}": {"DISTILL.weights.kl": w} for w in (0.3, 3)},
    **{f"aux_mse {w}": {"DISTILL.weights.aux_mse": w} for w in (0.1, 0.3)},
}
TEACHER_EPOCHS = (2, 4)  # worse teachers than the config's
LABELS = (100, 200)  # of SHAPES_LABELS, for teacher and students; as many steps as with all


class Task(NamedTuple):
    """One training and its test. `method` and `seed` name it in the JSON."""

    method: str
    seed: int
    script: str
    run: str  # of config/DATASET/DATASET_RUN.yaml
    overrides: Overrides = {}
    epochs: int | None = None  # else the config's
    student: str = "student"  # the methods that a gain is measured from, and the gap to
    teacher: str = "teacher"
    labels: int | None = None  # the first so many lines of the training list


def teacher(dataset: str, seed: int) -> Task:
    """One teacher a seed on shapes, whose seed also draws the images; one for all seeds on CamVid."""
    return Task("teacher", seed if dataset == "shapes" else SEEDS[dataset][0], "train_50.py", "pspnet50")


def distilled(method: str, seed: int, script: str = DISTILL, overrides: Overrides | None = None, **more: Any) -> Task:
    return Task(method, seed, script, "pspnet50_18", overrides or {}, **more)


def tasks(dataset: str, same_time: int, epochs: Mapping[str, int]) -> Iterator[Task]:
    """Seed by seed. same_time: epochs of the student alone that take the default recipe's time; epochs: of the
    config of each run."""
    for seed in SEEDS[dataset]:
        yield teacher(dataset, seed)
        yield Task("student", seed, "train_18.py", "pspnet18")
        yield distilled("default", seed)
        yield Task(SAME_TIME, seed, "train_18.py", "pspnet18", epochs=same_time)
        if dataset == "shapes" or seed == SEEDS[dataset][0]:
            for method, (script, overrides) in METHODS.items():
                if method != "default":
                    yield distilled(method, seed, script, overrides)
    if dataset == "shapes":
        for seed in SEEDS[dataset][:2]:
            for method, overrides in SETTINGS.items():
                yield distilled(method, seed, overrides=overrides)
        for seed in SEEDS[dataset][:2]:
            for count in TEACHER_EPOCHS:
                worse = teacher(dataset, seed)._replace(method=f"teacher of {count} epochs", epochs=count)
                yield worse
                yield distilled(f"default, {worse.method}", seed, teacher=worse.method)
            for labels in LABELS:
                longer = {run: number * SHAPES_LABELS // labels for run, number in epochs.items()}
                yield from few_labels(dataset, seed, labels, longer)


def few_labels(dataset: str, seed: int, labels: int, epochs: Mapping[str, int]) -> Iterator[Task]:
    names = {name: f"{name}, {labels} labels" for name in ("teacher", "student", "default")}
    common = {"labels": labels, "student": names["student"], "teacher": names["teacher"]}
    yield teacher(dataset, seed)._replace(method=names["teacher"], epochs=epochs["pspnet50"], **common)
    yield Task(names["student"], seed, "train_18.py", "pspnet18", epochs=epochs["pspnet18"], **common)
    yield distilled(names["default"], seed, epochs=epochs["pspnet18"], **common)
