"""The speed benchmarks run and make tables; tool/pipeline.py checks all before it trains."""

import json
import os
import sys

import pytest

from benchmark import losses, measure, step, step_variants, tables, testing
from tool import pipeline

TINY = {
    step: "--crop 33 --classes 3 --repeats 1 --kinds student --ways plain",
    losses: "--crop 33 --classes 3 --repeats 1 --recipes mgd",
    testing: "--images 1 --height 40 --width 60 --crop 33 --base-size 60 --repeats 1 --workers 0",
}


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", TINY, ids=lambda module: module.__name__.rpartition(".")[2])
def test_benchmark(benchmark, tmp_path, monkeypatch):
    path = tmp_path / "out" / "found.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", *TINY[benchmark].split(), "--json", str(path)])
    if benchmark is not step:
        monkeypatch.setattr(measure, "peak_of", lambda *_: 1)  # of a process of its own: once is enough
    monkeypatch.setattr(os, "environ", {**os.environ, "OMP_NUM_THREADS": "1"})
    benchmark.main()
    found = json.loads(path.read_text())
    assert found["machine"]["threads"] >= 1 and found["results"]
    text = tables.speed("found", found)
    assert text.count("\n|") >= 4 and "nan" not in text


def test_an_unknown_way_is_named(tmp_path):
    with pytest.raises(step_variants.UserError, match="no way fp16; take one of plain, ours"):
        step_variants.make("fp16", "student", None, tmp_path)


def test_ways_alternate_and_ratios_are_of_the_round():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measure.time_alternately(ways, 2, lambda: order.append("r"))
    assert "".join(order) == "aarbbr" * 3 and [len(times[name]) for name in ("a", "b", "reference")] == [2, 2, 4]
    summary = measure.summary({"a": [1.0, 4.0, 2.0], "b": [2.0, 8.0, 3.0], "reference": [1.0]}, "a")
    assert summary["b"]["ratio"] == 2.0 and summary["b"]["seconds"] == 3.0 and "reference" not in summary


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("TRAIN.base_lr 0.5 DISTILL.temperature 3 TRAIN.epochs", "TRAIN.epochs stands alone"),
        ("DISTILL.temprature 3", "did you mean DISTILL.temperature?"),
        ("DISTILL.weights.kl -1", "DISTILL.weights.kl"),
        ("TRAIN.epoch 3", "did you mean TRAIN.epochs?"),
        ("--dataset nowhere", "config/nowhere/nowhere_pspnet50_18.yaml does not exist"),
        ("--seed one", "--seed"),
    ],
)
def test_the_pipeline_checks_all_overrides_before_it_trains(given, complaint, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(pipeline, "call", lambda *command: pytest.fail(f"{command} was started"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        pipeline.main(["--out", str(tmp_path), *given.split()])
    text = capfd.readouterr().err
    assert end.value.code == 2 and text.startswith("error: ") and text.count("\n") == 1 and complaint in text


def test_the_pipeline_gives_each_run_its_keys(tmp_path):
    given = "DISTILL.temperature 3 TRAIN.epochs 2".split()
    runs = pipeline.three_runs("camvid", 3, tmp_path, None, given)
    teacher, student, distilled = (run.load() for run in runs.values())
    assert {cfg.train.manual_seed for cfg in (teacher, student, distilled)} == {3}
    assert distilled.distill.temperature == 3 and teacher.distill is None
    assert distilled.distill.teacher_path == teacher.test.model_path == f"{tmp_path}/pspnet50/model/train_epoch_2.pth"
    assert distilled.test.compare.student == f"{student.test.save_folder}/metrics.json"


def test_a_finished_run_is_skipped_until_its_settings_or_its_teacher_change(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(pipeline, "call", lambda *command, watch: started.append(command[0]))
    teacher = tmp_path / "pspnet50/model/train_epoch_75.pth"
    teacher.parent.mkdir(parents=True)
    teacher.write_text("weights")
    result = tmp_path / "pspnet50_18/result"
    result.mkdir(parents=True)

    def perform(*given) -> list[str]:
        started.clear()
        pipeline.three_runs("camvid", 0, tmp_path, None, list(given))["50_18"].perform()
        return list(started)

    both = ["train_50_18.py", "test_50_18.py"]
    assert perform() == both and perform() == both  # no metrics.json was written
    (result / "metrics.json").write_text("{}")
    assert perform() == []
    assert perform("DISTILL.temperature", "3") == both and perform() == both
    os.utime(teacher, (1, 1))
    assert perform() == both and perform() == []


def test_a_failed_script_ends_the_pipeline_with_its_status():
    with pytest.raises(SystemExit) as end:
        pipeline.call("-c", "raise SystemExit(75)")
    assert end.value.code == 75
