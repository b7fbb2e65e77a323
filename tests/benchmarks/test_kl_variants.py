"""kl where the teacher is right and kl at full size: benchmark/kl."""

import json

import pytest
import torch
from conftest import tiny_pspnet

from benchmark.kl import train_full_size, train_where_right
from model.labels import Labels
from util.data.batch import Batch


def labels_of(rows):
    """A batch's labels at stride 8 and at full size, for logits of 2x2 at a crop of 9x9; -1 is void."""
    coarse = torch.tensor(rows)[None]
    full = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :9, :9]
    grids = {1: Labels.of(coarse, -1), 8: Labels.of(full, -1)}
    return Batch(torch.zeros(1, 3, 9, 9), grids, grids, None)


def test_kl_where_the_teacher_is_right():
    """The mean of kl over those positions alone: one is right, one wrong, two void."""
    batch = labels_of([[0, 0], [-1, -1]])
    teacher = torch.tensor([[[5.0, 0.0], [5.0, 0.0]], [[0.0, 5.0], [0.0, 5.0]]])[None]
    student = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    found = train_where_right.where_right(student, teacher, batch, 2.0)
    assert found == pytest.approx(_kl_at(student, teacher, 0, 0).item())
    nowhere = train_where_right.where_right(student, -teacher, labels_of([[0, -1], [-1, -1]]), 2.0)
    assert nowhere == 0


def _kl_at(s, t, y, x, temperature=2.0):
    p, q = (torch.softmax(logits[0, :, y, x] / temperature, 0) for logits in (t, s))
    return temperature**2 * (p * (p / q).log()).sum()


def test_kl_at_full_size():
    """Of the enlarged logits: at a point between two of the grid it is the kl of their mean."""
    batch = labels_of([[0, 0], [0, 0]])
    batch.valid[8].mask[:] = False
    batch.valid[8].mask[0, 4, 4] = True
    batch.valid[8].count.fill_(1)
    teacher, student = 5 * torch.randn(2, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    found = train_full_size.full_size(student, teacher, batch, 2.0)
    means = [x.mean((2, 3), keepdim=True) for x in (student, teacher)]
    assert found == pytest.approx(_kl_at(*means, 0, 0).item(), rel=1e-4)


@pytest.mark.parametrize("name", ["where_right", "full_size"])
def test_the_scripts_of_kl_run(name, tiny, script):
    torch.save({"state_dict": tiny_pspnet(18).state_dict()}, tiny.out / "t.pth")
    teacher = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", tiny.out / "t.pth", "DISTILL.weights.aux_mse", 0]
    result = script(f"benchmark/kl/train_{name}.py", "--config", tiny.path, *teacher)
    assert result.status == 0, result.err
    (line,) = (json.loads(text) for text in (tiny.out / "model" / "metrics.jsonl").read_text().splitlines())
    assert line["kl"] > 0 and "aux_mse" not in line


def test_full_size_is_the_labels_size(tiny, fails):
    line = fails("benchmark/kl/train_full_size.py", "--config", tiny.path, "TRAIN.zoom_factor", "4")
    assert "needs TRAIN.zoom_factor 8" in line
