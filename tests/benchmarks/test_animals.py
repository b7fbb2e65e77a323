"""The plan of animals (tuning, then final runs with what it chose), its command, and its tables."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from benchmark import animals, animals_runs, evidence, results, tables
from benchmark.record import without_defaults

EPOCHS = {"pspnet50": 45, "pspnet18": 30, "pspnet50_18": 30}


def invented(name):
    """A score that differs from name to name, the same in every process."""
    return 0.3 + sum(name.encode()) % 89 / 300


def tuned(score=None, method=invented):
    """The scores of all tuning runs, planned as results.py would plan them, one wave after the other."""
    score = dict(score or {})
    while new := [t for t in animals.ordered(score, EPOCHS) if t.images == "tune" and t.method not in score]:
        score |= {task.method: method(task.method) for task in new}
    return score


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of empty records that results.py writes to."""
    for name in ("animals", "animals_tuning"):
        for suffix in (".json", ".npz"):
            shutil.copy(ROOT / "benchmark/results" / f"{name}{suffix}", tmp_path)
        content = {"failed": [], "runs": []} if name == "animals_tuning" else {"runs": []}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def made(folder, score=None, **more):
    """The experiments with a record of tuning that holds `score`."""
    records = animals_runs.Records(folder)
    records.tuned.content["runs"] = [{"method": m, "seed": 0, "mIoU": v} for m, v in (score or {}).items()]
    return animals_runs.Animals(folder / "out", records, **more)


def test_every_method_gets_ten_runs_over_the_same_learning_rates():
    score = tuned()
    for method in animals.METHODS:
        own = animals.candidates(method, score)
        assert len(own) == 10 and [*own][:6] == [animals.rate_name(method, *rate) for rate in animals.RATES]
        first = max([*own][:6], key=score.get)
        for name, keys in [*own.items()][6:]:  # at the best rates, and each with a setting of its own
            assert all(keys[key] == value for key, value in animals.RATES[_rate(first)].items()), name
        assert len({json.dumps(keys, sort_keys=True) for keys in own.values()}) == 10
    assert len(animals.candidates("teacher", score)) == 3


def _rate(name):
    rate, _, heads = name.rpartition(", ")[2].partition(" x ")
    return float(rate), int(heads)


def test_final_runs_take_the_best_of_the_held_out_images_and_wait_for_it():
    score = tuned()
    score["kl, T x 2"] = 0.9
    final = {(t.method, t.seed): t for t in animals.ordered(score, EPOCHS) if t.images != "tune"}
    assert final["kl", 11].overrides[animals.TEMPERATURE] == 4 and ("kl, T 4", 11) not in final
    assert final["kl, T 1", 11].overrides[animals.TEMPERATURE] == 1
    del score["kl, T x 2"]
    fewer = {t.method for t in animals.ordered(score, EPOCHS) if t.images != "tune"}
    assert "kl" not in fewer and "kl, halved" not in fewer and "default" in fewer
    assert {t.method.partition(",")[0] for t in animals.ordered({}, EPOCHS)} == {"teacher", "student"}


def test_no_tuning_saw_a_final_seed_or_a_held_out_image():
    tasks = [*animals.ordered(tuned(), EPOCHS)]
    assert len(tasks) == len({(t.method, t.seed) for t in tasks}) == 142  # as PROTOCOL.md's budget says
    assert {t.seed for t in tasks if t.images == "tune"}.isdisjoint(t.seed for t in tasks if t.images != "tune")
    lists = {name: {line.split()[0] for line in lines} for name, lines in LISTS.items()}
    assert lists["held_out"] | lists["tune"] == lists["train"] and not lists["held_out"] & lists["tune"]
    assert not (lists["other"] | lists["unlabelled"] | lists["val"]) & lists["train"]
    assert [len(lists[name]) for name in ("held_out", "tune", "other", "unlabelled")] == [87, 350, 437, 2694]


LISTS = animals.image_lists(ROOT / "dataset/animals/split")


def test_every_planned_run_has_a_valid_config_of_its_own(folder):
    experiments = made(folder, tuned(), data_root="somewhere")
    folders, configs = set(), set()
    for task in experiments.tasks:
        cfg = experiments.run(task).load()
        folders.add(cfg.train.save_path)
        paths = {"save_path", "model_path", "save_folder"}
        configs.add(cfg.model_dump_json(exclude={"train": paths, "test": paths}) + task.script)
        assert cfg.data.data_root == "somewhere" and (ROOT / task.script).is_file()
        tuning = task.images == "tune"
        assert Path(cfg.test.test_list).stem == ("held_out" if tuning else "val")
        assert Path(cfg.data.train_list).stem == (task.images or "train")
        if cfg.distill:
            teacher = experiments.teacher(task)
            assert (teacher.images == "tune") == tuning  # a teacher that saw the held-out images would spoil tuning
            assert cfg.distill.teacher_path == experiments.run(teacher).load().test.model_path
    assert len(folders) == len(configs) == len(experiments.tasks)


def test_the_weights_are_recorded_by_their_description(folder, fails):
    weights = folder / "weights"
    weights.mkdir()
    for depth in (18, 50):
        (weights / f"resnet{depth}.pth").touch()
    experiments = made(folder, pretrained=weights, weights="some weights")
    teacher, student = experiments.tasks[0], experiments.tasks[3]
    for task, depth in ((teacher, 50), (student, 18)):
        assert experiments.run(task).load().train.pretrained == str(weights / f"resnet{depth}.pth")
        assert experiments.settings(task)["TRAIN.pretrained"] == "some weights"
    command = "benchmark/results.py", "animals", "--pretrained"
    assert "go together" in fails(*command, weights)
    assert "resnet18.pth does not exist" in fails(*command, folder, "--weights", "none")


def test_recorded_runs_of_other_settings_than_tuning_now_chooses_are_named(folder):
    keys = ("nfd, 0.002 x 2", 0), ("nfd", 11)
    plans = []
    for score in (tuned(), {**tuned(), "nfd, weight x 10": 1.0}):
        experiments = made(folder, score)
        plans.append(
            {(t.method, t.seed): experiments.settings(t) for t in experiments.tasks if (t.method, t.seed) in keys}
        )
    records = experiments.records
    for record, (method, seed) in zip((records.tuned, records.final), keys, strict=True):
        settings = json.loads(json.dumps(without_defaults(plans[0][method, seed])))
        record.content["runs"] = [{"method": method, "seed": seed, "config": {"settings": settings}}]
    assert not list(records.mismatches(plans[0]))
    ((entry, why),) = records.mismatches(plans[1])
    assert entry["method"] == "nfd" and "DISTILL.hints" in why


def test_the_committed_record_is_as_planned(tmp_path):
    records = animals_runs.Records(ROOT / "benchmark" / "results")
    experiments = animals_runs.Animals(tmp_path, records)
    runs = [*records.tuned.content["runs"], *records.final.content["runs"]]
    experiments.weights = runs[0]["config"]["settings"].get("TRAIN.pretrained", "") if runs else ""
    planned = {(t.method, t.seed): experiments.settings(t) for t in experiments.tasks if records.find(t.method, t.seed)}
    assert not list(records.mismatches(planned))


def test_a_tuning_run_that_fails_counts_as_0_and_the_rest_goes_on(folder, monkeypatch):
    """Once another has been recorded: what fails before that is a wrong command."""
    monkeypatch.setattr(animals_runs.Animals, "run", lambda *_: type("", (), {"perform": lambda: None}))

    def run(method, seed, code=2):
        if method == "student, 0.006 x 10":
            raise SystemExit(code)
        return {"method": method, "seed": seed, "mIoU": invented(method)}, np.ones(3)

    def perform(code):
        experiments = made(folder)
        tasks = [task for task in experiments.tasks if task.run == "pspnet18"]
        monkeypatch.setattr(results, "make", lambda _, task: run(task.method, task.seed, code))
        monkeypatch.setattr(experiments, "prepare", lambda _: None)
        results.perform(experiments, experiments.records, lambda: tasks, jobs=1)
        return animals_runs.Records(folder).tuned.content

    with pytest.raises(SystemExit):
        perform(code=1)
    content = perform(code=2)
    assert content["failed"] == ["student, 0.006 x 10"] and len(content["runs"]) == 5
    assert animals.scores_of(content)["student, 0.006 x 10"] == 0
    assert animals_runs.Records(folder).find("student, 0.006 x 10", 0)  # the next command does not try it again


def test_the_tables_of_a_record(folder):
    """An invented record: every planned run is in a table, and without runs there is none."""
    experiments = made(folder, score := tuned())
    summary_rows, entries = set(), []
    for task in experiments.tasks:
        beside = {"student": task.student, "teacher": task.teacher, "teacher_file": "ab"[task.seed == 12]}
        settings = {"TRAIN.pretrained": "invented weights"}
        entry = {"method": task.method, "seed": task.seed, "mIoU": invented(task.method) + task.seed / 1000}
        entries.append({**entry, "epochs": task.epochs, "beside": beside, "config": {"settings": settings}})
        summary_rows.add(task.method if task.images != "tune" else None)
    final = [entry for entry in entries if entry["seed"] in animals.SEEDS]
    tuning = {"failed": [], "runs": [entry for entry in entries if entry["seed"] == animals.TUNING_SEED]}
    content = evidence.analyse("animals", {"runs": final})
    text = tables.of_animals({**content, "tuned": tuning})
    everything = "\n".join(text.values())
    for method in summary_rows - {None}:
        assert f"| {tables.NAMES.get(method, method)} |" in everything, method
    assert "trained 2 times" in text["animals main"]
    assert "invented weights" in text["animals main"] and "kl, T" in text["animals kl"]
    row = next(line for line in text["animals rates"].splitlines() if line.startswith("| `nfd` |"))
    assert f"{100 * score['nfd, 0.002 x 2']:.2f}" in row
    assert animals.choice("nfd", score).removeprefix("nfd, ") in row
    empty = tables.of_animals({**evidence.analyse("animals", {"runs": []}), "tuned": {"failed": [], "runs": []}})
    assert {*empty.values()} == {tables.NOT_RUN}
