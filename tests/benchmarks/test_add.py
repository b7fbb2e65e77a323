"""benchmark/add.py: runs made by hand, in the record and in its table."""

import json

import pytest
import torch
from conftest import tiny_pspnet

from benchmark import add, evidence, record, tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(add, "FOLDER", tmp_path)
    return tmp_path


def test_a_run_is_recorded_once_with_what_its_checkpoint_says(tiny, script, folder):
    for name in ("train_18.py", "test_18.py"):
        result = script(name, "--config", tiny.path, "TRAIN.manual_seed", "11", "TEST.save_folder", tiny.out / "result")
        assert result.status == 0, result.err
    for _ in range(2):
        add.main(["animals_short", "student", str(tiny.out)])
    kept = record.RunRecord(folder / "animals_short")
    (entry,) = kept.content["runs"]
    metrics = json.loads((tiny.out / "result/metrics.json").read_text())
    assert (entry["seed"], entry["epochs"], entry["mIoU"]) == (11, 1, metrics["mIoU"])
    assert entry["config"]["settings"]["TRAIN.manual_seed"] == 11 and str(tiny.out) not in json.dumps(entry)
    assert kept.pixels["student 11"].shape == (3, 3, 4)
    found = {"animals_short": evidence.analyse("animals_short", kept.content)}
    text = tables.rewrite("<!-- animals_short main -->\n<!-- end -->", found)
    assert f"| student alone | 1 | 1 | {100 * metrics['mIoU']:.2f} |" in text


def test_a_teacher_from_elsewhere_has_neither_seed_nor_epochs(tiny, script, folder):
    torch.save({"state_dict": tiny_pspnet(18).state_dict()}, tiny.out / "t.pth")
    teacher = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", tiny.out / "t.pth", "TEST.teacher", "True"]
    result = script("test_50_18.py", "--config", tiny.path, *teacher)
    assert result.status == 0, result.err
    add.main(["animals_short", "teacher", str(tiny.out)])
    (entry,) = record.RunRecord(folder / "animals_short").content["runs"]
    assert (entry["seed"], entry["epochs"], entry["config"]) == (0, "", {"settings": {}})


def test_a_run_without_a_test_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        add.main(["animals_short", "student", str(folder / "nowhere")])
    assert stop.value.code == 2 and "nowhere/result/metrics.json does not exist" in capsys.readouterr().err
