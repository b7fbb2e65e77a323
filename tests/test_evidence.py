"""benchmark/results.py, plan.py and evidence.py: what is run, and what the numbers say together."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_pspnet

from benchmark import evidence, plan, results
from tool.report import runs as tool_runs
from util import config


def bench(dataset, folder):
    return results.Bench(dataset, folder / "out", "somewhere", folder / dataset)


def task(dataset, method, seed):
    made = bench(dataset, results.Path("nowhere"))
    tasks = plan.tasks(dataset, 8, made.epochs)
    return next(task for task in tasks if (task.method, task.seed) == (method, seed))


def keys_of(made, task):
    given = made.overrides(task)
    return dict(zip(given[::2], given[1::2], strict=True))


def test_every_method_is_run_as_its_config_says(tmp_path):
    made, fitnet = bench("camvid", tmp_path), task("camvid", "fitnet", 0)
    keys = keys_of(made, fitnet)
    assert keys["DATA.data_root"] == "somewhere" and keys["DISTILL.weights.kl"] == "0"
    assert "fitnet" in keys["DISTILL.hints"] and "seed_0/teacher" in keys["DISTILL.teacher_path"]

    cfg = config.load(results.ROOT / made.config_file(fitnet.run), made.overrides(fitnet))
    assert cfg.distill.hints[0].layer == "layer4"
    assert set(plan.METHODS) == {"default", "original", "kl", "aux_mse", "kl + aux_mse", "fitnet", "cwd"}


@pytest.mark.parametrize("dataset", plan.SEEDS)
def test_no_two_runs_share_a_name_or_settings(dataset, tmp_path):
    made = bench(dataset, tmp_path)
    tasks = {(t.method, t.seed): t for t in plan.tasks(dataset, 8, made.epochs)}
    assert len({made.folder(seed, method) for method, seed in tasks}) == len(tasks)
    assert len({made.settings(t) for t in tasks.values()}) == len(tasks)
    seeds = {*plan.SEEDS[dataset], *plan.DEPENDENCE_SEEDS[dataset]}
    assert {seed for method, seed in tasks if method == "default"} == seeds


def test_few_labels_have_their_own_teacher_and_as_many_steps(tmp_path):
    made, few = bench("shapes", tmp_path), task("shapes", "default, 100 labels", 15)
    keys = keys_of(made, few)
    assert keys["DATA.train_list"].endswith("train100.txt") and "teacher_100_labels" in keys["DISTILL.teacher_path"]
    assert int(keys["TRAIN.epochs"]) == 4 * made.epochs["pspnet50_18"]
    teacher = keys_of(made, made.teacher(few))
    assert teacher["DATA.train_list"] == keys["DATA.train_list"]
    assert teacher["TEST.model_path"] == keys["DISTILL.teacher_path"]


def test_an_entry_counts_only_for_the_same_settings(tmp_path, monkeypatch):
    made, default = bench("shapes", tmp_path), task("shapes", "default", 10)
    digests = {"digest": made.settings(default), "scoring": made.scoring(default)}
    made.content["runs"] = [{"method": "default", "seed": 10, "config": digests}]
    assert made.find(default) and not made.find(task("shapes", "default", 11))
    assert not made.find(default._replace(overrides={"DISTILL.temperature": 3}))
    made.drop_stale([default])
    assert len(made.content["runs"]) == 1
    with monkeypatch.context() as other:
        other.setattr(made, "scoring", lambda _: "another window")
        assert not made.find(default)
    monkeypatch.setitem(made.__dict__, "epochs", made.epochs | {"pspnet50": 1})  # another teacher
    assert not made.find(default)
    made.drop_stale([default])
    assert not made.content["runs"]


def test_the_same_time_is_never_less(tmp_path):
    made = bench("shapes", tmp_path)
    made.content["pace"] = {"seconds a step": {"student": 1.0, "default": 1.8}}
    assert made.same_time() == 8  # 4 epochs * 1.8 are 7.2


def test_summary(runs, tmp_path, monkeypatch):
    """Gains are paired by seed; the gap is the teacher's lead over the student."""
    monkeypatch.setattr(evidence, "RESAMPLES", 50)
    entries, pixels = [], {}
    for method, name in {"teacher": "pspnet50", "student": "pspnet18", "default": "pspnet50_18"}.items():
        tested = tool_runs.read(runs / name)
        counts = tool_runs.count([tested], tool_runs.pairs_of(tested), border=0.01).pixels[0].sum(1)
        pixels |= {f"{method} {seed}": counts for seed in (0, 1)}
        for seed in (0, 1):  # the second one's scores are made up
            entries.append({"method": method, "seed": seed, "epochs": 3, "mIoU": tested.metrics["mIoU"] + 0.01 * seed,
                            "beside": {"student": "student", "teacher": "teacher"}})  # fmt: skip
    entries[-1]["mIoU"] += 0.02
    summary = evidence.summarise("camvid", entries, pixels)
    teacher, student, default = (entry["mIoU"] for entry in entries[::2])
    row = summary["default"]
    assert row["gain"] == pytest.approx(default - student + 0.01)
    assert row["gain_spread"] == pytest.approx(0.02 / np.sqrt(2))
    assert row["gap_closed"] == pytest.approx((default - student + 0.01) / (teacher - student))
    low, high = row["gain_interval"]  # over images, of the maps: those of both seeds are the same here
    assert low <= default - student <= high
    assert "gain" not in summary["teacher"] and "gain" not in summary["student"]
    text = evidence.table(summary, evidence.MAIN)
    assert f"| distilled, default | 2 | 3 | {100 * (default + 0.015):.2f} |" in text
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    folder.mkdir()
    pace = {"seconds a step": {"student": 1.0, "default": 2.0}, "machine": results.measure.machine()}
    (folder / "camvid.json").write_text(json.dumps({"pace": pace, "runs": entries, "summary": summary}))
    readme.write_text("before\n<!-- camvid main -->\nold\n<!-- end -->\nafter\n<!-- camvid fair -->\n<!-- end -->\n")
    evidence.rewrite_readme(readme, folder)
    written = readme.read_text()
    assert text in written and "old" not in written and "\nafter\n" in written and "2.00 s distilled" in written


def test_one_teacher_may_serve_all_seeds():
    score = {("teacher", 0): 0.6, ("student", 0): 0.5, ("student", 1): 0.4}
    assert evidence._lead(score, "teacher", "student", 1) == pytest.approx(0.2)
    assert evidence._lead(score | {("teacher", 2): 0.7}, "teacher", "student", 1) is None


def test_a_run_is_made_once_and_remembered(tmp_path, monkeypatch):
    """The whole way, with the scripts replaced: train, test, enter, and nothing when asked again."""
    made, default = bench("camvid", tmp_path), task("camvid", "default", 0)
    calls = []
    monkeypatch.setattr(results.measure, "call", lambda *command: calls.append(command[0]))
    monkeypatch.setattr(results.runs, "read", lambda _: type("R", (), {"metrics": dict.fromkeys(SCORES, 0.5)}))
    monkeypatch.setattr(results.runs, "pairs_of", lambda _: [])
    counts = np.ones((1, 4, 2, 3, 11), np.int64)
    monkeypatch.setattr(results.runs, "count", lambda *_, border: type("C", (), {"pixels": counts}))
    made.perform(default)
    assert calls == ["train_50.py", "train_50_18.py", "test_18.py"]  # the teacher's checkpoint was not there
    again = bench("camvid", tmp_path)
    again.perform(default)
    assert len(calls) == 3 and again.content["runs"][0]["mIoU"] == 0.5
    assert again.pixels["default 0"].shape == (4, 3, 11)


def test_several_at_a_time_wait_for_their_teacher(tmp_path, monkeypatch):
    made = bench("shapes", tmp_path)
    tasks = [t for t in plan.tasks("shapes", 8, made.epochs) if t.seed == 10 and "labels" not in t.method]
    ended = []
    monkeypatch.setattr(made, "perform", ended.append)
    made.perform_all(tasks, jobs=4)
    order = [t.method for t in ended]
    assert sorted(order) == sorted(t.method for t in tasks)
    assert all(order.index(t.teacher) < order.index(t.method) for t in tasks if t.run == "pspnet50_18")


def test_a_failure_ends_the_rest(tmp_path, monkeypatch):
    made, begun = bench("shapes", tmp_path), []

    def fails(task):
        begun.append(task)
        raise SystemExit(2)

    monkeypatch.setattr(made, "perform", fails)
    with pytest.raises(SystemExit):
        made.perform_all(list(plan.tasks("shapes", 8, made.epochs)), jobs=2)
    assert len(begun) < 10


SCORES = ("mIoU", "mAcc", "allAcc")


def test_the_originals_losses(tiny, script):
    torch.save({"state_dict": tiny_pspnet(18).state_dict()}, tiny.out / "t.pth")
    teacher = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", tiny.out / "t.pth", "TRAIN.pictures", "0"]
    result = script("benchmark/train_original.py", "--config", tiny.path, *teacher)
    assert result.status == 0, result.err
    (line,) = (json.loads(text) for text in (tiny.out / "model" / "metrics.jsonl").read_text().splitlines())
    total = 0.25 * line["ce"] + 0.75 * line["kl"] + line["aux_smooth_l1"]
    assert line["loss"] == pytest.approx(total) and line["kl"] > 0
