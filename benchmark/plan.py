"""What benchmark/results.py runs: the methods, their settings, the order."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

SEEDS = {"camvid": (0, 1, 2), "shapes": (10, 11, 12, 13, 14)}  # shapes: 0 to 2 were used for tuning its settings
DEPENDENCE_SEEDS = {"camvid": (0, 1, 2), "shapes": (15, 16, 17)}  # of what the gain depends on
SHAPES_LABELS = 400
KL, AUX_MSE, HINTS = "DISTILL.weights.kl", "DISTILL.weights.aux_mse", "DISTILL.hints"
CWD = "[{layer: logits, loss: cwd, weight: 3, temperature: 4}]"
RUNS = ("pspnet50", "pspnet18", "pspnet50_18")  # of the config files
DISTILL = "train_50_18.py"
FLOAT32 = "student, float32"
SAME_TIME = "same time"  # the student alone for as long as the default recipe takes

Overrides = Mapping[str, Any]

METHODS: dict[str, tuple[str, Overrides]] = {
    "default": (DISTILL, {}),
    "original": ("benchmark/train_original.py", {HINTS: "[]"}),
    "kl": (DISTILL, {AUX_MSE: 0, HINTS: "[]"}),
    "aux_mse": (DISTILL, {KL: 0, HINTS: "[]"}),
    "kl + aux_mse": (DISTILL, {HINTS: "[]"}),
    # layer4 on every crop would be 22 GB of CamVid
    "fitnet": (
        DISTILL,
        {KL: 0, AUX_MSE: 0, HINTS: "[{layer: layer4, loss: fitnet, weight: 10}]", "DISTILL.cache": ""},
    ),
    "cwd": (DISTILL, {KL: 0, AUX_MSE: 0, HINTS: CWD}),
}
CAMVID: dict[str, Overrides] = {
    "kl + 3 aux_mse": {AUX_MSE: 3, HINTS: "[]"},
    "3 aux_mse": {KL: 0, AUX_MSE: 3, HINTS: "[]"},
}
# How the default recipe's gain depends on its settings, on shapes.
SETTINGS: dict[str, Overrides] = {
    **{f"T {t} of kl": {"DISTILL.temperature": t} for t in (1, 4)},
    **{f"kl {w}": {KL: w} for w in (0, 3)},
    **{f"aux_mse {w}": {AUX_MSE: w} for w in (0, 3)},
    **{f"cwd {w}": {HINTS: CWD.replace("weight: 3", f"weight: {w}")} for w in (1, 10)},
}
TEACHER_EPOCHS = (2, 4, 21)  # two worse teachers than the config's, and a better one
LONG = {"camvid": (40, 75), "shapes": (16,)}  # epochs of longer schedules for the students
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
        yield from three_networks(dataset, seed)
        yield Task(SAME_TIME, seed, "train_18.py", "pspnet18", epochs=same_time)
        if dataset == "shapes":  # does bfloat16 learn the same?
            yield Task(FLOAT32, seed, "train_18.py", "pspnet18", {"TRAIN.precision": "fp32"})
        for method, (script, overrides) in METHODS.items():
            if method != "default":
                yield distilled(method, seed, script, overrides)
        if dataset == "camvid":
            for method, overrides in CAMVID.items():
                yield distilled(method, seed, overrides=overrides)
    for seed in DEPENDENCE_SEEDS[dataset]:
        yield from long_schedules(dataset, seed) if dataset == "camvid" else dependence(dataset, seed, epochs)


def dependence(dataset: str, seed: int, epochs: Mapping[str, int]) -> Iterator[Task]:
    """Other settings, teachers, schedules and numbers of labels; epochs: of the config of each run."""
    yield from three_networks(dataset, seed)
    for method, overrides in SETTINGS.items():
        yield distilled(method, seed, overrides=overrides)
    for count in TEACHER_EPOCHS:
        other = teacher(dataset, seed)._replace(method=f"teacher of {count} epochs", epochs=count)
        yield other
        yield distilled(f"default, {other.method}", seed, teacher=other.method)
    yield from long_schedules(dataset, seed, max(TEACHER_EPOCHS))
    for labels in LABELS:
        longer = {run: number * SHAPES_LABELS // labels for run, number in epochs.items()}
        yield from few_labels(dataset, seed, labels, longer)


def three_networks(dataset: str, seed: int) -> Iterator[Task]:
    if teacher(dataset, seed).seed == seed:
        yield teacher(dataset, seed)
    yield Task("student", seed, "train_18.py", "pspnet18")
    yield distilled("default", seed)


def long_schedules(dataset: str, seed: int, teacher_epochs: int | None = None) -> Iterator[Task]:
    taught = f"teacher of {teacher_epochs} epochs" if teacher_epochs else "teacher"
    for epochs in LONG[dataset]:
        alone = Task(f"student, {epochs} epochs", seed, "train_18.py", "pspnet18", epochs=epochs)
        yield alone
        yield distilled(f"default, {epochs} epochs", seed, epochs=epochs, student=alone.method, teacher=taught)


def few_labels(dataset: str, seed: int, labels: int, epochs: Mapping[str, int]) -> Iterator[Task]:
    names = {name: f"{name}, {labels} labels" for name in ("teacher", "student", "default")}
    common = {"labels": labels, "student": names["student"], "teacher": names["teacher"]}
    yield teacher(dataset, seed)._replace(method=names["teacher"], epochs=epochs["pspnet50"], **common)
    yield Task(names["student"], seed, "train_18.py", "pspnet18", epochs=epochs["pspnet18"], **common)
    yield distilled(names["default"], seed, epochs=epochs["pspnet18"], **common)
