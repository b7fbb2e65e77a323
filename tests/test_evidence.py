"""benchmark/results.py and evidence.py: what is run, and what the numbers say together."""

import json

import pytest
import torch
from conftest import network

from benchmark import evidence, results
from util import config


def test_every_method_is_run_as_its_config_says(tmp_path):
    bench = results.Bench("camvid", tmp_path, "somewhere")
    task = results.Task("fitnet", 0, "train_50_18.py", "pspnet50_18")
    given = bench.overrides(task)
    keys = dict(zip(given[::2], given[1::2], strict=True))
    assert keys["DATA.data_root"] == "somewhere" and keys["DISTILL.weights.kl"] == "0"
    assert "fitnet" in keys["DISTILL.hints"] and "seed_0/teacher" in keys["DISTILL.teacher_path"]

    cfg = config.load(results.ROOT / bench.config_file(task), given)
    assert cfg.distill.hints[0].layer == "layer4"
    assert set(results.METHODS) == {"default", "original", "kl", "aux_mse", "fitnet", "cwd"}


def test_summary(runs, tmp_path, monkeypatch):
    """Gains are paired by seed; the gap is the teacher's lead over the student."""
    monkeypatch.setattr(evidence, "RESAMPLES", 50)
    names = {"teacher": "pspnet50", "student": "pspnet18", "default": "pspnet50_18"}
    folders = {(method, 0): runs / name for method, name in names.items()}
    entries = [
        {
            "method": method,
            "seed": 0,
            "seconds": 60.0,
            "mIoU": json.loads((f / "result/metrics.json").read_text())["mIoU"],
        }
        for (method, _), f in folders.items()
    ]
    summary = evidence.summarise("camvid", entries, folders)
    teacher, student, default = (entry["mIoU"] for entry in entries)
    row = summary["default"]
    assert row["gain"] == pytest.approx(default - student) and row["spread"] is None
    assert row["gap_closed"] == pytest.approx((default - student) / (teacher - student))
    low, high = row["gain_interval"]
    assert low <= row["gain"] <= high
    assert "gain" not in summary["teacher"]
    text = evidence.table(summary)
    assert f"| distilled, default | 1 | {100 * default:.2f} |" in text
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    folder.mkdir()
    (folder / "camvid.json").write_text(json.dumps({"runs": entries, "summary": summary}))
    readme.write_text("before\n<!-- results: camvid -->\nold\n<!-- end -->\nafter\n")
    evidence.rewrite_readme(readme, folder)
    assert text in readme.read_text() and "old" not in readme.read_text() and readme.read_text().endswith("after\n")


def test_the_originals_losses(tiny, script):
    torch.save({"state_dict": network(18).state_dict()}, tiny.out / "t.pth")
    teacher = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", tiny.out / "t.pth", "TRAIN.pictures", "0"]
    result = script("benchmark/train_original.py", "--config", tiny.path, *teacher)
    assert result.status == 0, result.err
    (line,) = (json.loads(text) for text in (tiny.out / "model" / "metrics.jsonl").read_text().splitlines())
    total = 0.25 * line["ce"] + 0.75 * line["kl"] + line["aux_smooth_l1"]
    assert line["loss"] == pytest.approx(total) and line["kl"] > 0
