"""The runs of benchmark/results.py: methods, settings, seeds, order."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SEEDS = {"camvid": (0, 1, 2), "shapes": (10, 11, 12, 13, 14)}  # shapes: 0 to 2 were used for tuning its settings
ABLATION_SEEDS = {"camvid": (0, 1, 2), "shapes": (15, 16, 17)}  # of `ablations`; no choice was made on 15 to 17
DEEPLAB_PAIRS = (
    ("student, 16 epochs", "kl"),
    ("kl, where right", "kl"),
    ("cwd", "kl"),
    ("kl, unlabelled", "kl"),
    ("kl, unlabelled", "student, 16 epochs"),
    ("kl, unlabelled", "student, teacher's maps"),
)
# What add.py records: the seeds, and the methods to be compared.
ADDED: Mapping[str, tuple[Sequence[int], Sequence[tuple[str, str]]]] = {
    "animals_short": (
        (10, 11, 12),
        (("features", "random"), ("imagenet", "random"), ("imagenet", "features"), ("lite2", "imagenet")),
    ),
    "demo": ((26, 27, 28, 29, 30, 31), ()),  # seed 0 was used for tuning
    "animals_small": ((10, 11, 12), ()),
    "animals_small_tuning": ((0,), ()),
    "animals_deeplab": ((0, 10, 11, 12), DEEPLAB_PAIRS),
    # 0 and 10 are the teachers' seeds
    "animals_unlabelled": ((0, 10, 13, 14, 15, 16, 17), (("kl, unlabelled", "default, unlabelled"),)),
    "animals_longer": ((10, 18, 19, 20, 21, 22), (("default, unlabelled", "student, 24 epochs"),)),
}
SHAPES_LABELS = 400
KL, AUX_MSE, HINTS = "DISTILL.weights.kl", "DISTILL.weights.aux_mse", "DISTILL.hints"
PER_BATCH = "TRAIN.unlabelled_per_batch"
FITNET = "[{layer: layer4, loss: fitnet, weight: 10}]"
CWD = "[{layer: logits, loss: cwd, weight: 3, temperature: 4}]"
RUNS = ("pspnet50", "pspnet18", "pspnet50_18")  # of the config files
DISTILL = "train_50_18.py"
FLOAT32 = "student, float32"
EQUAL_TIME = "same time"  # in the record: the student alone for as long as the default recipe takes

Overrides = Mapping[str, Any]

METHODS: dict[str, tuple[str, Overrides]] = {
    "default": (DISTILL, {}),
    "original": ("benchmark/train_original.py", {HINTS: "[]"}),
    "kl": (DISTILL, {AUX_MSE: 0, HINTS: "[]"}),
    "aux_mse": (DISTILL, {KL: 0, HINTS: "[]"}),
    "kl + aux_mse": (DISTILL, {HINTS: "[]"}),
    "fitnet": (DISTILL, {KL: 0, AUX_MSE: 0, HINTS: FITNET, "DISTILL.cache": ""}),  # its cache of CamVid has 22 GB
    "cwd": (DISTILL, {KL: 0, AUX_MSE: 0, HINTS: CWD}),
}
CAMVID: dict[str, Overrides] = {
    "kl + 3 aux_mse": {AUX_MSE: 3, HINTS: "[]"},
    "3 aux_mse": {KL: 0, AUX_MSE: 3, HINTS: "[]"},
}
# On shapes, each changes one setting of the default recipe.
SETTINGS: dict[str, Overrides] = {
    **{f"T {t} of kl": {"DISTILL.temperature": t} for t in (1, 4)},
    **{f"kl {w}": {KL: w} for w in (0, 3)},
    **{f"aux_mse {w}": {AUX_MSE: w} for w in (0, 3)},
    **{f"cwd {w}": {HINTS: CWD.replace("weight: 3", f"weight: {w}")} for w in (1, 10)},
}
TEACHER_EPOCHS = (2, 4, 21)  # the config's teacher has 7
LONG = {"camvid": (40, 75), "shapes": (16,)}  # epochs of longer schedules for the students
LABELS = (100, 200)  # of SHAPES_LABELS


class Task(NamedTuple):
    """One training and its test; `method` and `seed` are its name in the record."""

    method: str
    seed: int
    script: str
    run: str  # of config/DATASET/DATASET_RUN.yaml
    overrides: Overrides = {}
    epochs: int | None = None  # else the config's
    student: str = "student"  # method that the gain is measured from
    teacher: str = "teacher"  # method that teaches a distilled student
    labels: int | None = None  # use the first `labels` lines of the training list only
    images: str | None = None  # of animals, another training list than all 437 (animals.py)


def teacher(dataset: str, seed: int) -> Task:
    """On shapes one for each seed, which also draws the images; on CamVid one for all seeds."""
    return Task("teacher", seed if dataset == "shapes" else SEEDS[dataset][0], "train_50.py", "pspnet50")


def distilled(method: str, seed: int, script: str = DISTILL, overrides: Overrides | None = None, **more: Any) -> Task:
    return Task(method, seed, script, "pspnet50_18", overrides or {}, **more)


def tasks(dataset: str, equal_time: int, epochs: Mapping[str, int]) -> Iterator[Task]:
    """Seed by seed. equal_time: epochs of the student alone that take as long as the default
    recipe; epochs: of each run's config."""
    for seed in SEEDS[dataset]:
        yield from three_networks(dataset, seed)
        yield Task(EQUAL_TIME, seed, "train_18.py", "pspnet18", epochs=equal_time)
        if dataset == "shapes":  # does bfloat16 learn the same?
            yield Task(FLOAT32, seed, "train_18.py", "pspnet18", {"TRAIN.precision": "fp32"})
        for method, (script, overrides) in METHODS.items():
            if method != "default":
                yield distilled(method, seed, script, overrides)
        if dataset == "camvid":
            for method, overrides in CAMVID.items():
                yield distilled(method, seed, overrides=overrides)
    for seed in ABLATION_SEEDS[dataset]:
        yield from long_schedules(dataset, seed) if dataset == "camvid" else ablations(dataset, seed, epochs)


def ablations(dataset: str, seed: int, epochs: Mapping[str, int]) -> Iterator[Task]:
    """Other settings, teachers, schedules and numbers of labels; epochs: of each run's config."""
    yield from three_networks(dataset, seed)
    for method, overrides in SETTINGS.items():
        yield distilled(method, seed, overrides=overrides)
    for count in TEACHER_EPOCHS:
        other = teacher(dataset, seed)._replace(method=f"teacher of {count} epochs", epochs=count)
        yield other
        yield distilled(f"default, {other.method}", seed, teacher=other.method)
    yield from long_schedules(dataset, seed, max(TEACHER_EPOCHS))
    for labels in LABELS:
        yield from few_labels(dataset, seed, labels, epochs)


def three_networks(dataset: str, seed: int) -> Iterator[Task]:
    if teacher(dataset, seed).seed == seed:
        yield teacher(dataset, seed)
    yield Task("student", seed, "train_18.py", "pspnet18")
    yield distilled("default", seed)


def long_schedules(dataset: str, seed: int, teacher_epochs: int | None = None) -> Iterator[Task]:
    teaching = f"teacher of {teacher_epochs} epochs" if teacher_epochs else "teacher"
    for epochs in LONG[dataset]:
        alone = Task(f"student, {epochs} epochs", seed, "train_18.py", "pspnet18", epochs=epochs)
        yield alone
        yield distilled(f"default, {epochs} epochs", seed, epochs=epochs, student=alone.method, teacher=teaching)


def few_labels(dataset: str, seed: int, labels: int, epochs: Mapping[str, int]) -> Iterator[Task]:
    """The three networks on the first `labels` images, in as many steps; epochs: of the configs."""
    times = SHAPES_LABELS // labels
    names = {name: f"{name}, {labels} labels" for name in ("teacher", "student", "default")}
    common = {"labels": labels, "student": names["student"], "teacher": names["teacher"]}
    of_teacher = {"method": names["teacher"], "epochs": times * epochs["pspnet50"]}
    yield teacher(dataset, seed)._replace(**of_teacher, **common)
    yield Task(names["student"], seed, "train_18.py", "pspnet18", epochs=times * epochs["pspnet18"], **common)
    yield distilled(names["default"], seed, epochs=times * epochs["pspnet18"], **common)
