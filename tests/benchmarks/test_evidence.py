"""What results.py runs, what counts as recorded, and what evidence.py's tables say."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from pydantic import Field, create_model

from benchmark import experiments as made_by
from benchmark import plan, record, results
from tool import pipeline
from util import config

SCORES = ("mIoU", "mAcc", "allAcc")
PACE = {"seconds a step": {"student": 1.0, "default": 1.8}}


def experiments(dataset, folder):
    return results.Experiments(dataset, folder / "out", PACE, "somewhere" if dataset == "camvid" else None)


def task(made, method, seed):
    return next(task for task in made.tasks if (task.method, task.seed) == (method, seed))


@pytest.mark.parametrize("dataset", plan.SEEDS)
def test_every_planned_run_has_a_valid_config_of_its_own(dataset, tmp_path):
    made = experiments(dataset, tmp_path)
    folders, settings = set(), set()
    for planned in made.tasks:
        cfg = made.run(planned).load()
        assert cfg.train.epochs == planned.epochs and cfg.train.manual_seed == planned.seed
        assert bool(cfg.distill) == (planned.run == "pspnet50_18")
        if cfg.distill:
            assert cfg.distill.teacher_path == made.run(made.teacher(planned)).load().test.model_path
        folders.add(cfg.train.save_path)
        settings.add(json.dumps(record.without_defaults(made.settings(planned)), sort_keys=True))
    names = {(planned.method, planned.seed) for planned in made.tasks}
    assert len(folders) == len(settings) == len(names) == len(made.tasks)


def test_a_method_is_run_as_it_says(tmp_path):
    made = experiments("camvid", tmp_path)
    cfg = made.run(task(made, "fitnet", 0)).load()
    assert cfg.data.data_root == "somewhere" and cfg.distill.weights.kl == 0 and cfg.distill.cache is None
    assert cfg.distill.hints[0].layer == "layer4" and "seed_0/teacher" in cfg.distill.teacher_path
    assert task(made, plan.EQUAL_TIME, 0).epochs == 36 and task(made, "default", 0).epochs == 20
    assert task(experiments("shapes", tmp_path), plan.EQUAL_TIME, 10).epochs == 8  # 4 * 1.8 are 7.2: never less


def test_few_labels_have_their_own_teacher_and_as_many_steps(tmp_path):
    made = experiments("shapes", tmp_path)
    few = made.run(task(made, "default, 100 labels", 15)).load()
    assert few.data.train_list.endswith("train100.txt") and "teacher_100_labels" in few.distill.teacher_path
    assert few.train.epochs == 4 * task(made, "default", 15).epochs


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """recorded(dataset, entries) -> a record of those in a folder that results.py then reads."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)

    def write(dataset, entries):
        path = tmp_path / dataset
        path.with_suffix(".json").write_text(json.dumps({"pace": PACE, "runs": entries}))
        np.savez_compressed(path.with_suffix(".npz"), **{f"{e['method']} {e['seed']}": np.ones(3) for e in entries})
        return record.RunRecord(path)

    return write


def entry(made, method, seed):
    settings = record.without_defaults(made.settings(task(made, method, seed)))
    return {"method": method, "seed": seed, "mIoU": 0.5, "config": {"settings": settings}}


def test_what_is_recorded_counts_for_its_settings_alone(tmp_path, recorded):
    made = experiments("shapes", tmp_path)
    kept = recorded("shapes", [entry(made, "default", 10), {"method": "gone", "seed": 3, "config": {}}])
    planned = {(t.method, t.seed): made.settings(t) for t in made.tasks}
    assert [(e["method"], why) for e, why in kept.mismatches(planned)] == [("gone", "not planned")]
    for key, value in (("DISTILL.temperature", 3.0), ("teacher's TRAIN.epochs", 9), ("TEST.flip", False)):
        others = planned | {("default", 10): {**planned["default", 10], key: value}}
        (_, why), _ = kept.mismatches(others)
        assert why == f"{key} was {planned['default', 10][key]!r} and is {value!r}"
    assert not any(name in json.dumps(kept.content["runs"][0]) for name in ("save_path", "workers", str(tmp_path)))


def test_a_new_key_changes_nothing_that_is_recorded(tmp_path, recorded, monkeypatch):
    """Its default counts where it is missing; another value does not."""
    made = experiments("shapes", tmp_path)
    kept = recorded("shapes", [entry(made, "default", 10)])
    train = create_model("Train", __base__=type(made.run(made.tasks[0]).load().train), invented=(float, 0.5))
    newer = create_model("Config", __base__=config.Config, train=(train, Field(alias="TRAIN")))
    monkeypatch.setattr(config, "Config", newer)
    settings = made.settings(task(made, "default", 10))
    assert settings["TRAIN.invented"] == settings["teacher's TRAIN.invented"] == 0.5
    assert not list(kept.mismatches({("default", 10): settings}))
    ((_, why),) = kept.mismatches({("default", 10): settings | {"TRAIN.invented": 0.6}})
    assert why == "TRAIN.invented was 0.5 and is 0.6"


@pytest.mark.parametrize("drop", [False, True])
def test_a_stale_entry_is_reported_and_kept_unless_dropped(drop, tmp_path, recorded, monkeypatch, capsys):
    made = experiments("camvid", tmp_path)
    stale = entry(made, "default", 0)
    stale["config"]["settings"]["TRAIN.base_lr"] = 0.25
    recorded("camvid", [stale])
    performed = []
    monkeypatch.setattr(
        results, "perform", lambda made, record, tasks, jobs: performed.extend(tasks()) or record.write()
    )
    results.main(["camvid", "--out", str(tmp_path / "out"), "--data-root", "somewhere", *["--drop"] * drop])
    said = capsys.readouterr().out
    assert "default, seed 0: TRAIN.base_lr was 0.25 and is 0.05" in said and ("kept" in said) != drop
    left = record.RunRecord(tmp_path / "camvid")
    assert bool(left.find("default", 0)) == bool(left.pixels) != drop
    assert (("default", 0) in {(t.method, t.seed) for t in performed}) == drop  # else it stands as it is


def test_a_record_that_is_not_there(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    with pytest.raises(SystemExit) as end:
        results.main(["camvid"])
    assert end.value.code == 2 and capfd.readouterr().err.startswith(f"error: {tmp_path}/camvid.json does not exist")


@pytest.fixture
def replaced(monkeypatch):
    """The scripts replaced by a list of those that would have been started."""
    calls, counts = [], np.ones((1, 4, 2, 3, 11), np.int64)

    def call(*command, watch):
        calls.append(command[0])
        model = Path(command[command.index("TRAIN.save_path") + 1])
        (model.parent / "result").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(pipeline, "call", call)
    monkeypatch.setattr(made_by.runs, "read", lambda _: SimpleNamespace(metrics=dict.fromkeys(SCORES, 0.5)))
    monkeypatch.setattr(made_by.runs, "pairs_of", lambda _: [])
    monkeypatch.setattr(made_by.runs, "count", lambda *_, border: SimpleNamespace(pixels=counts))
    return calls


def test_a_run_is_made_once_and_recorded(tmp_path, recorded, replaced):
    made, kept = experiments("camvid", tmp_path), recorded("camvid", [])
    missing = [task(made, "default", 1)]
    results.perform(made, kept, lambda: [t for t in missing if not kept.find(t.method, t.seed)], jobs=1)
    assert replaced == ["train_50.py", "test_50.py", "train_50_18.py", "test_50_18.py"]
    again = record.RunRecord(tmp_path / "camvid")
    assert again.find("default", 1)["mIoU"] == 0.5 and again.find("teacher", 0) and not again.find("default", 0)
    assert again.pixels["default 1"].shape == (4, 3, 11)
    assert not list(again.mismatches({(t.method, t.seed): made.settings(t) for t in made.tasks}))


def test_several_at_a_time_wait_for_their_teachers(tmp_path, recorded, replaced):
    made = experiments("camvid", tmp_path)
    tasks = [task(made, method, 0) for method in ("default", "kl", "student", "teacher")]
    results.perform(made, recorded("camvid", []), lambda: tasks, jobs=4)
    assert replaced.index("test_50.py") < replaced.index("train_50_18.py")
    students = ["train_18.py", "test_18.py", *["train_50_18.py", "test_50_18.py"] * 2]
    assert sorted(replaced) == sorted(["train_50.py", "test_50.py", *students])


def test_a_failure_ends_the_rest(tmp_path, recorded, monkeypatch):
    made, begun = experiments("shapes", tmp_path), []
    monkeypatch.setattr(made, "prepare", lambda _: None)

    def fails(*command, watch):
        begun.append(command)
        raise SystemExit(2)

    monkeypatch.setattr(pipeline, "call", fails)
    with pytest.raises(SystemExit):
        results.perform(made, recorded("shapes", []), lambda: made.tasks, jobs=2)
    assert len(begun) < 10


def test_one_process_writes_a_record(tmp_path):
    hold = "with locked(Path(sys.argv[1])): print(1, flush=True); input()"
    hold = f"import sys; from pathlib import Path; from benchmark.record import locked\n{hold}"
    command = [sys.executable, "-c", hold, str(tmp_path / "a")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(record.UserError, match="another process writes"), record.locked(tmp_path / "a"):
            pass
        other.communicate(b"\n")
    with record.locked(tmp_path / "a"):
        pass
