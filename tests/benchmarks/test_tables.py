"""Intervals over seeds, and the published tables against the records."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_pspnet

from benchmark import evidence, plan, record, results, tables


def scored(method, values, seeds=(0, 1, 2), student="student", teacher="teacher"):
    beside = {"student": student, "teacher": teacher}
    return [
        {"method": method, "seed": seed, "epochs": 3, "mIoU": value, "beside": beside}
        for seed, value in zip(seeds, values, strict=True)
    ]


def test_an_interval_is_students_t_over_the_seeds():
    """4.3027 is t's 97.5 % quantile with 2 degrees of freedom; the gains are 1, 2 and 3 points."""
    entries = scored("student", [0.5, 0.4, 0.3]) + scored("default", [0.51, 0.42, 0.33]) + scored("teacher", [0.6], [0])
    row = evidence.summarise(entries)["default"]
    half = 4.302653 * 0.01 / 3**0.5
    assert row["gain"] == pytest.approx(0.02) and row["interval"] == pytest.approx([0.02 - half, 0.02 + half])
    assert row["gap_closed"] == pytest.approx(0.02 / 0.2)  # one teacher of seed 0 serves all seeds
    assert evidence.seed_interval([0.1]) is None
    assert "gain" not in evidence.summarise(entries)["teacher"] and "gain" not in evidence.summarise(entries)["student"]


def test_methods_are_compared_on_the_seeds_that_both_have():
    entries = scored("cwd", [0.5, 0.6, 0.7]) + scored("default", [0.4, 0.55], [0, 2])
    (row,) = evidence.contrasts(entries, [("cwd", "default"), ("kl", "default")])
    assert (row["method"], row["runs"]) == ("cwd", 2) and row["gain"] == pytest.approx(0.125)
    text = tables.contrasts([row, {**row, "interval": [0.1, 0.2]}])
    assert [line[-5:-2].strip() for line in text.splitlines()[2:]] == ["no", "yes"]


def test_the_interval_over_images_is_of_the_paired_draws(monkeypatch):
    """Two networks with the same maps differ by nothing in any draw; None without pixel counts."""
    monkeypatch.setattr(evidence, "RESAMPLES", 50)
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, (6, 3, 4)) + np.array([0, 9, 9])[:, None]
    draws = evidence.draws_of("shapes", {"default 0": counts, "student 0": counts, "kl 0": counts // 2 + 3})
    score = {("default", 0): 0.5, ("student", 0): 0.4, ("kl", 0): 0.3, ("cwd", 0): 0.6}
    assert evidence.difference(score, "default", "student", [0], draws)["interval_over_images"] == [0, 0]
    low, high = evidence.difference(score, "kl", "student", [0], draws)["interval_over_images"]
    assert low < high
    assert "interval_over_images" not in evidence.difference(score, "cwd", "student", [0], draws)


@pytest.fixture(scope="module")
def analysed():
    found = {}
    for dataset in (*plan.SEEDS, *plan.ADDED):
        kept = record.RunRecord(ROOT / "benchmark" / "results" / dataset)
        found[dataset] = kept.content, evidence.analyse(dataset, kept.content)
    return found


def published(fresh):
    """What tables.rewrite takes: `fresh` by dataset, and animals with its tuning."""
    folder = ROOT / "benchmark" / "results"
    tuned, kept = (record.RunRecord(folder / name).content for name in ("animals_tuning", "animals"))
    return {**fresh, "animals": {**evidence.analyse("animals", kept), "tuned": tuned}}


def test_the_published_tables_are_what_was_recorded(analysed):
    """README.md's, RESULTS.md's and the JSON's, from the scores of the runs alone."""
    for name, count in (("README.md", 1), ("benchmark/RESULTS.md", 26)):
        text = (ROOT / name).read_text()
        found = published({dataset: fresh for dataset, (_, fresh) in analysed.items()})
        assert tables.rewrite(text, found) == text
        assert text.count("<!-- end -->") == count
    for dataset, (content, fresh) in analysed.items():
        for group in evidence.groups(dataset):
            for method, row in fresh[group].items():
                assert row.items() <= content[group][method].items()


def test_the_tables_notice_a_changed_score(analysed):
    content = json.loads(json.dumps(analysed["camvid"][0]))
    next(e for e in content["runs"] if e["method"] == "cwd")["mIoU"] += 0.01
    changed = published({"shapes": analysed["shapes"][1], "camvid": evidence.analyse("camvid", content)})
    text = (ROOT / "README.md").read_text()
    assert tables.rewrite(text, changed) != text


def test_the_intervals_over_images_are_what_was_recorded(analysed):
    kept = record.RunRecord(ROOT / "benchmark" / "results" / "camvid")
    draws = evidence.draws_of("camvid", kept.pixels)
    assert evidence.analyse("camvid", kept.content, draws) == kept.content


@pytest.mark.parametrize("dataset", plan.SEEDS)
def test_all_that_is_planned_is_recorded(dataset, tmp_path):
    """As long as the plan and the configs are those of the published tables."""
    kept = record.RunRecord(ROOT / "benchmark" / "results" / dataset)
    made = results.Experiments(dataset, tmp_path, kept.content["pace"])
    assert not list(kept.mismatches({(t.method, t.seed): made.settings(t) for t in made.tasks}))
    assert all(kept.find(t.method, t.seed) for t in made.tasks)


def test_the_originals_losses(tiny, script):
    torch.save({"state_dict": tiny_pspnet(18).state_dict()}, tiny.out / "t.pth")
    teacher = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", tiny.out / "t.pth", "TRAIN.pictures", "0"]
    result = script("benchmark/train_original.py", "--config", tiny.path, *teacher)
    assert result.status == 0, result.err
    (line,) = (json.loads(text) for text in (tiny.out / "model" / "metrics.jsonl").read_text().splitlines())
    total = 0.25 * line["ce"] + 0.75 * line["kl"] + line["aux_smooth_l1"]
    assert line["loss"] == pytest.approx(total) and line["kl"] > 0
