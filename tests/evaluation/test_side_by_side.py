# ruff: noqa: F401, F811 - fixtures of other files
"""What stands side by side, the scores at the end of a test and comparison.png, is of the same images and protocol."""

import json
from pathlib import Path

import pytest
from test_compare import NAMES, copy, edit
from tested_runs import runs

from tool.report import picture
from util import config
from util.errors import UserError
from util.evaluate.comparison import compare


def test_a_part_of_the_maps_makes_no_picture(copy, dataset, tmp_path):
    cfg = config.load(copy / "tiny.yaml")
    with pytest.raises(UserError, match="val0.png does not exist"):
        picture.comparison(cfg, {"teacher": tmp_path}, tmp_path)


def test_tests_by_other_protocols_are_not_compared(copy, capsys):
    paths = [str(copy / name / "result" / "metrics.json") for name in NAMES]
    keys = [
        "TEST.compare.teacher",
        paths[0],
        "TEST.compare.student",
        paths[1],
        "TEST.save_folder",
        Path(paths[2]).parent,
    ]
    cfg = config.load(copy / "tiny.yaml", [*map(str, keys)])
    compare(cfg)
    assert "between the student alone and the teacher" in capsys.readouterr().out
    edit(Path(paths[1]), protocol={**json.loads(Path(paths[1]).read_text())["protocol"], "flip": False})
    compare(cfg)
    assert "Not comparable: flip is True, False, True." in capsys.readouterr().out
    edit(Path(paths[1]), mIoU=None)
    with pytest.raises(UserError, match="test that network again"):
        compare(cfg)


def test_a_teacher_tested_as_such_is_no_other_protocol(copy, script):
    path = copy / "pspnet50" / "result" / "metrics.json"
    protocol = json.loads(path.read_text())["protocol"]
    for changed in ({**protocol, "teacher": True}, {key: protocol[key] for key in protocol if key != "teacher"}):
        edit(path, protocol=changed)
        result = script("tool/report/compare.py", *(copy / name for name in NAMES), "--repeats", "0", "--out", copy)
        assert result.status == 0 and "different protocols" not in result.out, result
