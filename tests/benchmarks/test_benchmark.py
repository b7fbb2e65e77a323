"""The speed benchmarks run and make tables; tool/pipeline.py checks all before it trains."""

import json
import os
import re
import subprocess
import sys
import time
from argparse import Namespace

import pytest
from conftest import ROOT
from torch import nn

from benchmark import tables
from benchmark.speed import gpu, loading, losses, measure, step, step_variants, teachers, testing
from model.pspnet import PSPNet
from tool import pipeline

TINY = {
    step: "--crop 33 --classes 3 --repeats 1 --kinds student --ways plain",
    losses: "--crop 33 --classes 3 --repeats 1 --recipes mgd",
    loading: "--crop 33 --batch 2 --repeats 1 --images 8 --batches 2 --workers 0,1 --kind student",
    teachers: "--crop 33 --batch 2 --repeats 1 --teachers lraspp_mobilenet_v3_large",
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


@pytest.mark.slow
def test_the_gpus_command_passes_through_all_parts_on_a_cpu(tmp_path):
    words = ["benchmark/speed/gpu.py", "--dry-run", "--minutes", "60", "--json", tmp_path / "gpu.json"]
    result = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)  # minutes, when busy
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = found["results"]
    assert found["machine"]["torch"] and list(parts) == list(gpu.SHARES)
    assert all(part["ended"].startswith("after") for part in parts.values()), result.stdout
    assert len(parts["tests"]["tests"]) > 10 and set(parts["tests"]["tests"].values()) == {"skipped"}
    assert parts["loading"]["ways"]["1 workers"]["images_a_second"] > 0
    for kind, ways in gpu.WAYS.items():
        streams = {way for way in ways.split() if "stream" in way}  # a CPU has none
        assert parts[kind]["failed"].keys() == streams and not parts[kind]["left_out"]
        assert parts[kind]["ways"].keys() == {"ours", *ways.split()} - streams
    assert "| distillation | compile |" in result.stdout


def test_without_a_gpu_or_a_package_the_gpus_command_says_so(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 2 and "error: PyTorch sees no GPU here" in capfd.readouterr().err
    result = subprocess.run([sys.executable, "-S", gpu.__file__], capture_output=True, text=True)  # no site-packages
    assert result.returncode == 2 and result.stderr.startswith("error: not installed: cv2, numpy")


def test_a_part_that_does_not_end_is_stopped_and_what_it_measured_stays(tmp_path):
    path = tmp_path / "student.json"
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); time.sleep(99)"
    content = json.dumps({"ways": {"ours": {"seconds": 1.0}}})
    began = time.monotonic()
    found = gpu.run_part([sys.executable, "-c", code, str(path), content], 3, path)
    assert time.monotonic() - began < 30 and found["ended"].startswith("stopped after") and "ours" in found["ways"]
    found = gpu.run_part([sys.executable, "-c", "raise SystemExit('no such card')"], 30, tmp_path / "other.json")
    assert found == {"ways": {}, "ended": "status 1: no such card"}


def test_tests_outcomes_are_read_from_the_log(tmp_path):
    log = """tests/test_gpu.py::test_a[cuda] PASSED [ 50%]
tests/test_gpu.py::test_b[cuda-compile] FAILED [100%]
FAILED tests/test_gpu.py::test_b[cuda-compile] - AssertionError: assert 1 == 2
"""
    found = gpu.run_part([sys.executable, "-c", f"print({log!r}); raise SystemExit(1)"], 30, tmp_path / "tests.json")
    assert found["tests"] == {"test_a[cuda]": "passed", "test_b[cuda-compile]": "failed AssertionError: assert 1 == 2"}


def test_a_way_that_fails_or_has_no_time_is_no_row(tmp_path, monkeypatch):
    clock = [0.0]
    now = Namespace(monotonic=lambda: clock[0], perf_counter=lambda: clock[0])
    for module in (gpu, measure):
        monkeypatch.setattr(module, "time", now)
    monkeypatch.setattr(step_variants, "plain_step", lambda kind, options: lambda: None)
    monkeypatch.setattr(measure, "convolution_throughput", lambda dtype: (lambda: wait(1.0), 1.0))

    def wait(seconds):
        clock[0] += seconds

    def make(name, kind, options, folder):
        if name == "compile":
            raise RuntimeError("no compiler")
        return lambda: wait(4.0 if "+" in name else 2.0)

    monkeypatch.setattr(step_variants, "make", make)
    options = Namespace(**gpu.DRY, seconds=40.0, json=tmp_path / "found.json")
    gpu.compare("student", options, tmp_path)
    found = json.loads(options.json.read_text())
    assert found["failed"] == {"compile": "RuntimeError('no compiler')"}
    assert list(found["ways"]) == ["ours", "compile+compiled-loss"]
    row = found["ways"]["compile+compiled-loss"]
    assert (row["ratio"], row["seconds"], row["first_step"], row["images_a_second"]) == (2.0, 4.0, 4.0, 0.5)
    assert ["compile", "compile+compiled-loss", *found["left_out"]] == gpu.WAYS["student"].split()


@pytest.mark.full_width
def test_eight_gpus_on_paper_are_counted_from_the_networks():
    text = (ROOT / "benchmark" / "README.md").read_text()
    rows = dict(re.findall(r"^\| (gradients|all-reduce|BatchNorms|bytes)[^|]*(\|.*)\|$", text, re.MULTILINE))
    found = {name: [int(n) for n in re.findall(r"\d+", row)] for name, row in rows.items()}
    for column, layers in enumerate((18, 18, 50)):
        net = PSPNet(layers, 21)
        gradients = 4 * sum(p.numel() for p in net.parameters())
        norms = [module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        messages = 4 * sum(2 * channels + 1 for channels in norms)  # mean and variance, and the count
        counted = [gradients / 1e6, 2 * 7 / 8 * gradients / 1e6, len(norms), messages / 1e3]
        assert [found[name][column] for name in ("gradients", "all-reduce", "BatchNorms", "bytes")] == [
            round(number) for number in counted
        ]


def test_an_unknown_way_is_named(tmp_path):
    with pytest.raises(step_variants.UserError, match="no way fp16; take some of ours, plain"):
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
