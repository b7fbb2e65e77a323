"""The command of animals, from the first tuning run to the last final one, with the real scripts."""

import contextlib
import json
import runpy
import shutil
import sys
from concurrent.futures import Future

import numpy as np
import pytest
from conftest import ROOT, save_palette, scene
from PIL import Image

from benchmark import animals, animals_runs, results
from tool import pipeline

SMALL = (
    "TRAIN.pretrained none TRAIN.train_h 33 TRAIN.train_w 33 TRAIN.batch_size 2 TRAIN.workers 0 TEST.test_h 33".split()
)
SMALL += "TEST.test_w 33 TEST.mode whole TEST.flip False TEST.base_size 40 TRAIN.precision fp32".split()
KINDS = ("kl", "nfd", "aux_mse")  # recipes


class InThisThread(contextlib.nullcontext):
    """An executor for scripts in this process, which handle signals: only the main thread may."""

    def __enter__(self):
        return self

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **_):
        pass


@pytest.fixture
def tiny_plan(monkeypatch, tmp_path):
    """One learning rate and two variants a method, one seed, four images a list, one epoch -> the calls of scripts."""
    data, lists = tmp_path / "data", animals.image_lists(ROOT / "dataset/animals/split")
    lists = {name: lines[:4] for name, lines in lists.items()}
    (data / "image").mkdir(parents=True)
    (data / "label").mkdir()
    for line in {line for lines in lists.values() for line in lines}:
        image, *label = line.split()
        picture, classes = scene(np.random.default_rng(0), 33, 40)
        Image.fromarray(picture).save(data / image)
        if label:
            save_palette(classes, data / label[0])
    variants, of_data = animals.variants, animals_runs.Animals.data
    for name, value in {
        "RATES": {(0.002, 2): animals.RATES[0.002, 2]},
        "TEACHER_RATES": [(0.002, 2)],
        "RECIPES": {kind: animals.RECIPES[kind] for kind in KINDS},
        "METHODS": ("student", *KINDS),
        "FIRST": KINDS[:2],
        "SECOND": KINDS[2:],
        "LAST": (),
        "SEEDS": (10,),
        "variants": lambda method, at: dict(list(variants(method, at).items())[:2]),
        "QUESTIONS": {**animals.QUESTIONS, "kl, unlabelled": {animals.PER_BATCH: 2, **animals.NO_CACHE}},
    }.items():
        monkeypatch.setattr(animals, name, value)
    monkeypatch.setattr(animals_runs, "SEEDS", (10,))
    monkeypatch.setattr(animals_runs, "image_lists", lambda _: lists)
    monkeypatch.setattr(animals_runs, "EPOCHS", dict.fromkeys(animals_runs.EPOCHS, 1))
    small = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    monkeypatch.setattr(animals_runs.Animals, "data", lambda self, task: {**of_data(self, task), **small})
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for name in ("animals", "animals_tuning"):
        shutil.copy(ROOT / f"benchmark/results/{name}.npz", tmp_path)
        (tmp_path / f"{name}.json").write_text(json.dumps({"failed": [], "runs": []}))
    calls = []

    def call(script, *arguments, watch):
        calls.append((script, *arguments))
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / script), run_name="__main__")

    monkeypatch.setattr(pipeline, "call", call)
    monkeypatch.setattr(results, "ThreadPoolExecutor", InThisThread)
    monkeypatch.chdir(ROOT)
    return calls


@pytest.mark.slow
def test_tuning_then_final_runs_by_one_command(tiny_plan, tmp_path):
    """Each kind of run is trained, tested and recorded; the second command has nothing left to do."""
    command = ["animals", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    results.main(command)
    tuned, final = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("animals_tuning", "animals"))
    score = animals.scores_of(tuned)
    assert len(score) == 1 + 3 * len(("student", *KINDS)) and not tuned["failed"]
    methods = {entry["method"]: entry for entry in final["runs"]}
    questions = {*animals.QUESTION_NAMES} - {f"kl, T {animals.chosen('kl', score)[animals.TEMPERATURE]:g}"}
    assert {*methods} == {
        "teacher",
        animals.OTHER_TEACHER,
        "student",
        "student_double",
        "student_equal_time",
        *KINDS,
        *questions,
    }
    for method in ("student", *KINDS):
        assert methods[method]["config"]["overrides"] == json.loads(json.dumps(animals.chosen(method, score)))
    assert methods["student_double"]["epochs"] == 2
    assert methods["kl, other teacher"]["beside"]["teacher"] == animals.OTHER_TEACHER
    of_kl, of_other, of_nfd = (methods[m]["beside"]["teacher_file"] for m in ("kl", "kl, other teacher", "nfd"))
    assert of_kl == of_nfd != of_other
    assert str(tmp_path) not in json.dumps([tuned, final])  # no paths of this machine
    before = len(tiny_plan)
    results.main(command)
    assert len(tiny_plan) == before
