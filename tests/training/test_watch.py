"""Schedules, the gap between train and val, patience, and the check of the teacher before the first step."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, tiny_pspnet
from torch import nn

from model.labels import Labels
from model.pspnet import Output
from util import checkpoint
from util.data.batch import Batch
from util.data.lists import scored_list
from util.errors import UserError
from util.evaluate import predict
from util.keys import Schedule
from util.train.record import Recorder
from util.train.step import Weights
from util.train.teacher import Teacher


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def schedules(**given) -> Weights:
    made = {name: Schedule.model_validate(keys) for name, keys in given.items()}
    return Weights({"ce": 1.0, "kl": 2.0}, made, 10)


def test_schedules_golden():
    assert schedules().at(7) == {"ce": 1.0, "kl": 2.0}
    linear = schedules(kl={"shape": "linear", "from": 2, "until": 6})
    assert [linear.at(e)["kl"] for e in (0, 2, 3, 4, 6, 9)] == [2, 2, 1.5, 1, 0, 0]
    cosine = schedules(kl={"shape": "cosine"})
    assert [cosine.at(e)["kl"] for e in (0, 5, 10)] == pytest.approx([2, 1, 0])
    constant = schedules(kl={"shape": "constant", "from": 2, "until": 4})
    assert [constant.at(e)["kl"] for e in (0, 2, 3.9, 4)] == [0, 2, 2, 0]
    assert linear.at(5)["ce"] == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"kd": {"shape": "linear"}}, "no term kd"), ({"kl": {"shape": "linear", "from": 4, "until": 4}}, "not after")],
)
def test_mistakes_in_schedules(keys, words):
    with pytest.raises(UserError, match=words):
        schedules(**keys)


def test_patience_ends_the_run_and_stays_ended(tiny, script, caplog):
    # a learning rate at which nothing changes: the first epoch stays the best
    options = "TRAIN.epochs 9 TRAIN.patience 2 TRAIN.base_lr 1e-30 TRAIN.evaluate True".split()
    with caplog.at_level("INFO"):
        assert script("train_18.py", "--config", tiny.path, *options).status == 0
    assert "best.pth" in caplog.text and "TRAIN.patience" in caplog.text
    ended = len(lines(tiny.out / "model"))
    assert ended < 9 and checkpoint.read(tiny.out / "model" / f"train_epoch_{ended}.pth")["best_epoch"] == ended - 2
    assert script("train_18.py", "--config", tiny.path, *options).status == 0
    assert len(lines(tiny.out / "model")) == ended


def test_patience_begins_where_validation_does(tiny, script):
    options = "TRAIN.epochs 3 TRAIN.evaluate False".split()
    assert script("train_18.py", "--config", tiny.path, *options).status == 0
    (tiny.out / "model" / "train_epoch_3.pth").unlink()
    options = "TRAIN.epochs 3 TRAIN.evaluate True TRAIN.patience 2".split()
    assert script("train_18.py", "--config", tiny.path, *options).status == 0
    assert "val_mIoU" in lines(tiny.out / "model")[-1] and (tiny.out / "model" / "best.pth").is_file()


def test_pictures_that_cannot_be_made_cost_nothing(tiny, script, caplog):
    (tiny.out / "bad.png").write_text("junk")
    (tiny.out / "val.txt").write_text(f"val0.jpg {tiny.out}/bad.png\n")
    options = ["TRAIN.pictures", "1", "DATA.val_list", tiny.out / "val.txt"]
    assert script("train_18.py", "--config", tiny.path, *options).status == 0
    assert "warning: no pictures of val images (TRAIN.pictures): label" in caplog.text
    assert (tiny.out / "model" / "train_epoch_1.pth").is_file()


def test_gap_is_logged(tiny, script):
    assert script("train_18.py", "--config", tiny.path, "TRAIN.evaluate", "True").status == 0
    (line,) = lines(tiny.out / "model")
    assert line["gap"] == pytest.approx(line["train_mIoU"] - line["val_mIoU"])


class Oracle(nn.Module):
    """Reads the class off the scenes' second colour channel, and names `order`'s."""

    known = None

    def __init__(self, order):
        super().__init__()
        self.order, self.aux, self.weight = list(order), None, nn.Parameter(torch.zeros(1))

    def channels(self):
        return {"logits": CLASSES}

    def forward(self, image):
        green = image[:, 1] * 57.12 + 116.28  # 255, 205, 155, 105 for the four classes
        near = torch.stack([-(green - (255 - 50 * c)).abs() for c in range(CLASSES)], 1)
        return tiny_pspnet(18)(image[:, :, :9, :9])._replace(logits=near[:, self.order])


@pytest.mark.parametrize(("order", "warned"), [((0, 1, 2, 3), False), ((1, 2, 3, 0), True)])
def test_a_teacher_that_is_no_better_than_chance_is_said(tiny, caplog, order, warned):
    cfg = tiny.load("DISTILL.teacher_path", "t.pth", "DISTILL.check_images", "3")
    with caplog.at_level("INFO"):
        Teacher(cfg, Oracle(order)).check(cfg, scored_list(cfg.data.val_list, "DATA.val_list", cfg.data))
    assert "the teacher on 3 val images: mIoU" in caplog.text
    assert ("no better than chance" in caplog.text) == warned


@pytest.mark.parametrize("pixels", [0, 9])
def test_val_images_of_one_class_say_nothing_of_chance(tiny, caplog, monkeypatch, pixels):
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    matrix[0, 0] = pixels
    monkeypatch.setattr(predict, "validate", lambda *_: matrix)
    cfg = tiny.load("DISTILL.teacher_path", "t.pth", "DISTILL.check_images", "3")
    with caplog.at_level("INFO"):
        Teacher(cfg, Oracle(range(CLASSES))).check(cfg, scored_list(cfg.data.val_list, "DATA.val_list", cfg.data))
    assert "on 3 val images" in caplog.text and "chance" not in caplog.text


def test_the_teacher_is_scored_on_the_first_epochs_crops(tiny, caplog):
    """Of the labelled positions two of three are right; class 2 is taken for 1, and 3 is nowhere."""
    cfg = tiny.load("DISTILL.teacher_path", "t.pth")
    teacher = Teacher(cfg, Oracle(range(CLASSES)))
    scores = F.one_hot(torch.tensor([[[0, 1], [1, 3]]]), CLASSES).permute(0, 3, 1, 2).float()
    teacher.forward = lambda image: Output(scores, None, {})
    grids = {1: Labels.of(torch.tensor([[[0, 1], [2, 255]]]), 255)}
    with caplog.at_level("INFO"):
        teacher.report_crops()  # of an epoch that lacked its validation alone: nothing
        for _ in range(2):
            teacher(Batch(torch.zeros(1, 3, 9, 9), grids, grids, None))
        teacher.report_crops()
        teacher.report_crops()  # once
    (line,) = (record.message for record in caplog.records)
    assert line == "the teacher on this epoch's crops: mIoU 37.50 %, pixel accuracy 66.67 %"


def test_unlabelled_images_are_not_called_void(tiny, caplog):
    """Two steps of 2 labelled crops, all of whose 5x5 positions have labels, beside 60 unlabelled ones."""
    keys = "TRAIN.batch_size 2 TRAIN.unlabelled_per_batch 60 DATA.unlabelled_list u.txt DISTILL.teacher_path t.pth"
    run = SimpleNamespace(cfg=tiny.load(*keys.split()), names="abcd", log=logging.getLogger("train"))
    Recorder.labels_seen(run, torch.full((4, 4), 100 // 16), 2)
    assert caplog.text == ""
    Recorder.labels_seen(run, torch.eye(4), 2)
    assert "96.0 % of this epoch's crops is void" in caplog.text
