"""DISTILL.teacher_classes and several teachers: the mathematics, against plain loops, and the scripts."""

import math

import numpy as np
import pytest
import torch
from conftest import VOID

from model.distill.classes import FLOOR, Averaged, Known, Mapped, add_up, comparable, log_mean, padded
from model.distill.logits import kl
from model.labels import Labels
from model.pspnet import Output
from util.errors import UserError
from util.teachers import names

CITY = ["road", "sidewalk", "building", "sky", "car", "truck", "bus"]
OURS = ["sky", "land", "road", "car"]


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(0))


def test_probabilities_add_up_in_log_space():
    torch.manual_seed(0)
    scores = 30 * torch.randn(2, 7, 3, 5)  # far beyond what exp alone keeps
    groups = [[3], [], [0], [4, 5, 6]]
    mine = add_up(scores, padded(groups, 7))
    p = torch.softmax(scores.double(), 1)
    for c, group in enumerate(groups):
        expected = p[:, group].sum(1).log().clamp(min=FLOOR) if group else torch.full((2, 3, 5), FLOOR).double()
        torch.testing.assert_close(mine[:, c].double(), expected, rtol=1e-5, atol=1e-5)


def test_kl_is_over_the_known_classes_both_renormalised_and_where_the_teacher_means_them():
    """Against a loop over pixels; the unknown class's labels and pixels of mostly unmapped probability are left out."""
    rng = np.random.default_rng(0)
    known, groups = [0, 2, 3], [[3], [], [0], [4, 5, 6]]
    student, teacher = rng.normal(0, 2, (2, 4, 6, 5)), rng.normal(0, 2, (2, 7, 6, 5))
    label = rng.choice([0, 1, 2, 3, VOID, 254], (2, 6, 5))
    values, temperature = [], 2.0
    for n, y, x in np.ndindex(2, 6, 5):
        p = np.exp(log_softmax(teacher[n, :, y, x]))
        mine = np.array([p[groups[c]].sum() for c in known])
        if label[n, y, x] in (VOID, 1) or mine.sum() < 0.5:
            continue
        log_t = log_softmax(np.log(mine / mine.sum()) / temperature)
        log_s = log_softmax(student[n, known, y, x] / temperature)
        values.append(temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum())
    assert 5 < len(values) < (label != VOID).sum() - (label == 1).sum()  # both rules left pixels out
    labels = Labels.of(torch.tensor(label), VOID)
    log_p = add_up(torch.tensor(teacher).float(), padded(groups, 7))
    s, t, valid = comparable(torch.tensor(student).float(), log_p, labels, Known(known, 4))
    assert kl(s, t, valid, temperature=temperature).item() == pytest.approx(np.mean(values), rel=1e-4)
    assert int(valid.count) == len(values)


def test_nothing_changes_where_the_teacher_has_our_classes():
    x, labels = torch.randn(1, 4, 2, 2), Labels.of(torch.zeros(1, 2, 2).long(), VOID)
    assert all(a is b for a, b in zip(comparable(x, x, labels, None), (x, x, labels), strict=True))


def test_several_teachers_are_the_log_of_the_mean_of_their_probabilities():
    torch.manual_seed(0)
    scores = [40 * torch.randn(1, 4, 3, 3) for _ in range(3)]
    p = torch.stack([torch.softmax(x.double(), 1) for x in scores])
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    expected = (weights.view(3, 1, 1, 1, 1) * p).sum(0).log().clamp(min=FLOOR)
    mine = log_mean([x.log_softmax(1) for x in scores], weights.tolist())
    torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-4)


class Fixed(torch.nn.Module):
    """A network that always gives the same scores."""

    aux = None

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor(scores).view(1, -1, 1, 1), requires_grad=False)

    def channels(self):
        return {"logits": self.scores.shape[1]}

    def forward(self, image):
        return Output(self.scores.expand(len(image), -1, 2, 2), None, {})


def test_teachers_of_different_classes_teach_what_all_of_them_know():
    """What only one of them knows is not compared, and its share is missing from the sum."""
    half = [math.log(p) for p in (0.5, 0.3, 0.2)]
    one = Mapped(Fixed(half), [[0], [1], [2], []], True, torch.float32)  # knows 0, 1, 2
    two = Mapped(Fixed(half), [[2], [], [0], [1]], True, torch.float32)  # knows 0, 2, 3
    both = Averaged([one, two], [1.0, 3.0])
    assert both.known.indices == [0, 2]
    p = both(torch.zeros(1, 3, 9, 9)).logits.exp()[0, :, 0, 0]
    torch.testing.assert_close(p, torch.tensor([0.5 + 3 * 0.2, 0.3, 0.2 + 3 * 0.5, 3 * 0.3]) / 4)


def test_names_in_another_order_are_put_in_order():
    assert names.groups(OURS, ["Car", "road", "SKY", "la_nd"], None, "x") == [[2], [3], [1], [0]]


@pytest.mark.parametrize(
    "mapping, words",
    [
        ({"roat": ["road"]}, "roat is no class of DATA.names_path; did you mean road"),
        ({"car": ["trukc"]}, "the teacher x has no trukc; did you mean truck"),
        ({"car": ["car"], "land": ["sidewalk", "car"]}, "car stands under car and under land"),
        ({"car": ["car", "truck"]}, "maps 1 classes"),
        (None, r"x has 7 classes \(road, sidewalk, .*\); DATA.names_path has 4 classes \(sky, land, road, car\)"),
    ],
)
def test_mistakes_in_a_mapping(mapping, words):
    with pytest.raises(UserError, match=words):
        names.groups(OURS, CITY, mapping, "the teacher x")
