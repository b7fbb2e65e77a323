"""tool/pipeline.py on generated scenes: the demo from nothing to the report, and what it says of the time."""

import re
import zlib

import numpy as np
import pytest
from conftest import ROOT, python

from dataset.shapes import prepare
from tool import forecast, pipeline
from util.errors import UserError


@pytest.mark.slow
def test_the_demo_from_nothing_to_the_report(tmp_path):
    """And a second time, when all is there: nothing is trained again."""
    command = ("tool/pipeline.py", "--dataset", "demo", "--seed", "3", "--out", tmp_path)
    command += ("TRAIN.epochs", "1", "TRAIN.batch_size", "32")
    result = python(*command)
    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert said.index("minutes on this machine") < said.index("$ python train_50.py")
    shares = [int(share) for share in re.findall(r"^== \w+\.py: (\d+) % of all done", said, re.MULTILINE)]
    assert shares[0] == 0 and shares == sorted(shares) and len(shares) >= 6 and shares[-1] < 100
    assert all((tmp_path / name).is_file() for name in ("report.html", "comparison.png"))
    again = python(*command)
    assert again.returncode == 0 and "train_50.py: " not in again.stdout and again.stdout.count("skipping") == 3


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) sets the time that forecast.py sees."""

    def set_to(seconds):
        monkeypatch.setattr(forecast.time, "monotonic", lambda: seconds)

    set_to(0)
    return set_to


def test_the_time_left_follows_the_pace_so_far(clock, capsys):
    """Twice as slow as measured, so twice what is left; a line for each change; what is skipped takes nothing."""
    progress = forecast.Progress({"a.py": 60, "b.py": 120, "c.py": 60})
    progress.say("a.py")
    clock(120)
    progress.finish("a.py")
    progress.say("b.py"), progress.say("b.py")
    clock(240)
    progress.say("b.py", 0.5)
    progress.skip("c.py")
    progress.say("b.py", 0.75)
    assert capsys.readouterr().out.splitlines() == [
        "== a.py: 0 % of all done in 0.0 minutes, about 4.0 left",
        "== b.py: 25 % of all done in 2.0 minutes, about 6.0 left",
        "== b.py: 50 % of all done in 4.0 minutes, about 4.0 left",
        "== b.py: 83 % of all done in 4.0 minutes, about 0.8 left",
    ]
    forecast.Progress({}).say("a.py")  # of a dataset whose time is not measured
    assert capsys.readouterr().out == ""


def test_the_forecast_is_of_the_steps_and_images_that_will_be(tmp_path, monkeypatch):
    """A step is said to take 1 s (teacher) and 2 s (student), a batch's forward pass half of it."""
    seconds = {50: (1.0, 0.5), 18: (2.0, 1.0)}
    monkeypatch.setattr(forecast, "passes", lambda cfg: seconds[cfg.train.layers])
    monkeypatch.setattr(forecast.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(
        forecast, "read_list", lambda path, *_: range({"train.txt": 10, "val.txt": 3}[path.split("/")[-1]])
    )
    given = "TRAIN.batch_size 4 TRAIN.epochs 3 TRAIN.train_h 33 TRAIN.train_w 33".split()
    given += "TEST.base_size 66 TEST.flip True".split()
    runs = pipeline.three_runs("demo", 3, tmp_path, tmp_path, given)
    costs = forecast.measure({depth: run.load() for depth, run in runs.items()})
    assert list(costs) == [f"{kind}_{depth}.py" for depth in ("50", "18", "50_18") for kind in ("train", "test")]
    assert [costs[f"train_{depth}.py"] for depth in ("50", "18", "50_18")] == [6.0, 12.0, 15.0]  # 2 steps an epoch
    assert costs["test_50.py"] == 3 * 2 * 4 * 0.5 / 4 and costs["test_18.py"] == costs["test_50_18.py"] == 6.0


def test_the_forecasts_step_is_a_training_step(tmp_path):
    pipeline.prepare("demo", tmp_path, 3)
    cfg = pipeline.three_runs("demo", 3, tmp_path, tmp_path, [])["18"].load()
    step, forward = forecast.passes(cfg)
    assert step > forward > 0


def test_easy_scenes_are_small_and_their_colours_hint_at_the_class():
    """Beside the same scenes without the hint: the objects' colours lie nearer to their classes'."""
    colors = np.loadtxt(ROOT / "dataset/shapes/shapes_colors.txt", dtype=np.uint8)
    distances = []
    for look in (prepare.EASY, prepare.EASY._replace(hint=0.0)):
        image, label = prepare.scene(0, 0, 0, look, colors)
        assert image.shape == (64, 64, 3) and label.shape == (64, 64)
        on = (label > 0) & (label < 255)
        distances.append(np.abs(image[on].astype(float) - colors[label[on]]).mean())
    assert distances[0] < 0.9 * distances[1]


def test_the_scenes_of_the_recorded_results_stay_the_same():
    """A change of the generator's draws would make shapes another dataset."""
    colors = np.zeros((8, 3), np.uint8)
    labels = [prepare.scene(10, split, 7, prepare.Look(), colors)[1] for split in (0, 1)]
    assert [zlib.crc32(label.tobytes()) for label in labels] == [3961784211, 2725368659]


@pytest.fixture
def own(tiny, monkeypatch):
    """own(*overrides) -> the three runs of a dataset whose teacher is a ResNet-34."""
    monkeypatch.setattr(pipeline, "config_file", lambda dataset, run: str(tiny.out / f"{run}.yaml"))
    test = "TEST: {model_path: , save_folder: }"
    (tiny.out / "pspnet18.yaml").write_text(f"base: {tiny.path}\n{test}\n")
    (tiny.out / "pspnet50.yaml").write_text(f"base: {tiny.path}\n{test}\nTRAIN: {{layers: 34}}\n")
    distill = f"DISTILL: {{teacher_config: {tiny.out}/pspnet50.yaml}}"
    (tiny.out / "pspnet50_18.yaml").write_text(f"base: {tiny.path}\n{test}\n{distill}\n")
    return lambda *given: pipeline.three_runs("own", 0, tiny.out / "exp", None, list(given))


def test_the_teacher_is_the_one_that_was_trained(own):
    assert own()["50_18"].load().distill.teacher_layers == 34
    other = own("DISTILL.teacher_path", "other.pth", "DISTILL.teacher_layers", "18")["50_18"].load().distill
    assert (other.teachers, other.teacher_layers) == (["other.pth"], 18)
    runs = own("TRAIN.patience", "2", "TRAIN.evaluate", "True")  # may end before its last epoch
    best = str(runs["50"].load().test.model_path)
    assert best.endswith("pspnet50/model/best.pth") and runs["50_18"].load().distill.teacher_path == best


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["DISTILL.hints", "[{layer: logits, loss: cwdd}]"], "unknown loss cwdd; did you mean cwd"),
        (["DISTILL.hints", "[{layer: logits, loss: cwd, temperatur: 1}]"], "unknown option temperatur"),
        (["TRAIN.save_path", "exp/x/model"], "TRAIN.save_path would be the same for all three networks; --out"),
    ],
)
def test_what_would_fail_after_hours_fails_first(own, given, words):
    with pytest.raises(UserError, match=words):
        own(*given)


def test_a_result_counts_for_its_lists_and_teachers(own, tiny, monkeypatch):
    calls = []

    def call(script, *_, watch):
        calls.append(script)
        result = tiny.out / "exp/pspnet50_18/result"
        result.mkdir(parents=True, exist_ok=True)
        (result / "metrics.json").write_text("{}")

    monkeypatch.setattr(pipeline, "call", call)
    for name in ("a", "b", "list"):
        (tiny.out / name).write_text("one")
    teachers = f"[{tiny.out}/a, {tiny.out}/b]"
    run = own("DATA.train_list", str(tiny.out / "list"), "DISTILL.teacher_path", teachers)["50_18"]
    run.perform(), run.perform()
    assert len(calls) == 2
    for name in ("list", "b"):
        (tiny.out / name).write_text("two")
        run.perform(), run.perform()
    assert len(calls) == 6
