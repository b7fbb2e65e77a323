"""DISTILL.teacher_classes and several teachers: the mathematics, against plain loops, and the scripts."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, VOID, tiny_pspnet
from foreign import mask2former, save, segformer

from model.distill.classes import FLOOR, Averaged, Known, Mapped, add_up, comparable, log_mean, padded
from model.distill.logits import kl
from model.labels import Labels
from model.pspnet import Output, PSPNet
from util import config
from util.errors import UserError
from util.teachers import load, names

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


CITYSCAPES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
).split(", ")


def test_the_shipped_mapping_makes_every_class_of_camvid():
    """Of Cityscapes' names as transformers' checkpoints have them."""
    mapping = config.parse_yaml((ROOT / "dataset/camvid/camvid_from_cityscapes.yaml").read_text(), "")
    camvid = (ROOT / "dataset/camvid/camvid_names.txt").read_text().split()
    groups = names.groups(camvid, CITYSCAPES, mapping, "x")
    assert all(groups) and sum(map(len, groups)) == 15


def test_the_recipe_of_the_page(tmp_path):
    """Its YAML, word for word, over the front page's: a mapping of each of Cityscapes' classes."""
    read = {page: (ROOT / page).read_text() for page in ("README.md", "model/distill/TEACHERS.md")}
    files = (r"# config/roads/roads_pspnet18.yaml\n", r"# config/roads/roads_segformer_18.yaml\n")
    own, recipe = (
        re.search(rf"{file}(.*?)(?=# config/|```)", text, re.DOTALL)[1]
        for file, text in zip(files, read.values(), strict=True)
    )
    (tmp_path / "roads_pspnet18.yaml").write_text(own.replace("../voc2012", f"{ROOT}/config/voc2012"))
    (tmp_path / "roads_segformer_18.yaml").write_text(recipe)
    cfg = config.load(tmp_path / "roads_segformer_18.yaml")
    groups = names.groups(["road", "car", "rest"], CITYSCAPES, cfg.distill.teacher_classes, "x")
    assert sorted(sum(groups, [])) == list(range(19))


@pytest.fixture(scope="session")
def city(tmp_path_factory):
    """A SegFormer of CITY's classes, half of whose weights are small."""
    return f"hf:{save(segformer, tmp_path_factory.mktemp('city'), CITY)}"


MAPPING = "{sky: [sky], road: [road, sidewalk], car: [car, truck, bus]}"
QUICK = "TRAIN.pictures 0 TRAIN.evaluate False DISTILL.check_images 2 DISTILL.weights.aux_mse 0 DISTILL.hints".split()


@pytest.fixture
def distil(tiny, script):
    """distil(teacher_path, *overrides, hints=...) -> the result of two steps, and its line of metrics."""

    def train(teacher, *overrides, hints="[{layer: logits, loss: cwd, weight: 3}]", out="model"):
        options = [*QUICK, hints, "DISTILL.teacher_path", teacher, "TRAIN.save_path", tiny.out / out, *overrides]
        result = script("train_50_18.py", "--config", tiny.path, *options)
        path = tiny.out / out / "metrics.jsonl"
        return result, json.loads(path.read_text().splitlines()[-1]) if path.exists() else None

    return train


def test_a_teacher_of_other_classes_teaches_by_yaml_alone(distil, city, caplog):
    caplog.set_level("INFO")
    result, line = distil(city, "DISTILL.teacher_classes", MAPPING)
    assert result.status == 0, result.err
    assert line["kl"] > 0 and line["cwd_logits"] > 0 and "aux_mse" not in line
    assert "6 of its 7 classes make up 3 of our 4; it does not know land" in caplog.text


def test_check_reads_such_a_teacher_and_writes_nothing(tiny, script, city):
    options = [*QUICK, "[]", "DISTILL.teacher_path", city, "DISTILL.teacher_classes", MAPPING]
    result = script("train_50_18.py", "--check", "--config", tiny.path, *options)
    assert result.status == 0, result.err
    assert "kl 0." in result.out and "kl 0.0000" not in result.out and not (tiny.out / "model").exists()


def test_the_mapping_may_stand_in_a_file_and_holds_for_a_resumed_run(tiny, distil, city):
    (tiny.out / "map.yaml").write_text(MAPPING)
    first, line = distil(city, "DISTILL.teacher_classes", MAPPING, out="first")
    second, same = distil(city, "DISTILL.teacher_classes", tiny.out / "map.yaml", out="second")
    assert first.status == second.status == 0 and line == same
    other = MAPPING.replace("bus", "bus, building")
    result, _ = distil(city, "DISTILL.teacher_classes", other, "TRAIN.epochs", 1, out="first")
    assert result.status == 2 and "DISTILL.teacher_classes (was" in result.err


def test_a_mask_classifier_and_a_checkpoint_of_ours_teach_together(tiny, distil, tmp_path):
    """With a cache they are asked once, and the second run learns what the first one did."""
    torch.save({"state_dict": tiny_pspnet(18).state_dict()}, tmp_path / "ours.pth")
    path = f"[{tmp_path / 'ours.pth'}, hf:{save(mask2former, tmp_path / 'm2f')}]"
    common = [
        "DISTILL.teacher_layers",
        18,
        "DISTILL.teacher_weights",
        "[3.0, 1.0]",
        "DISTILL.cache",
        tmp_path / "cache",
    ]
    first, line = distil(path, *common, out="first")
    assert first.status == 0, first.err
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Averaged, "forward", lambda self, image: asked.append(image))
        second, same = distil(path, *common, "DISTILL.check_images", 0, out="second")
    assert second.status == 0 and not asked and line == same
    (folder,) = (tmp_path / "cache").iterdir()
    distil(path, *common[:2], "DISTILL.teacher_weights", "[1.0, 1.0]", *common[4:], out="third")
    assert len(list((tmp_path / "cache").iterdir())) == 2  # other weights, other outputs


def test_a_checkpoint_of_ours_in_another_order_of_classes(tiny, distil, tmp_path):
    """Its config names its classes; put in our order it teaches what it would have taught with ours."""
    net = tiny_pspnet(18)
    order = [2, 0, 3, 1]
    state = net.state_dict()
    torch.save({"state_dict": state}, tmp_path / "ours.pth")
    mixed = {k: v[order] if k.startswith(("cls.4.", "aux.4.")) else v for k, v in state.items()}
    torch.save({"state_dict": mixed}, tmp_path / "mixed.pth")
    (tmp_path / "mixed.txt").write_text("\n".join(OURS[i] for i in order))
    (tmp_path / "mixed.yaml").write_text(
        f"base: {tiny.path}\nDATA: {{names_path: {tmp_path}/mixed.txt}}\nTEST: {{model_path: {tmp_path}/mixed.pth}}\n"
    )
    keys = ["DISTILL.teacher_layers", "18", "DISTILL.check_images", "0"]
    plain = load.load(tiny.load(*keys, "DISTILL.teacher_path", str(tmp_path / "ours.pth")))
    ours = load.load(tiny.load(*keys, "DISTILL.teacher_config", str(tmp_path / "mixed.yaml")))
    assert isinstance(ours, Mapped) and ours.known is None and ours.aux is not None
    image = torch.randn(1, 3, 33, 33)
    for name in ("logits", "aux", "layer3"):
        assert torch.equal(plain(image).layer(name), ours(image).layer(name)), name
    assert ours.channels() == plain.channels()
    assert distil("", *keys, "DISTILL.teacher_config", tmp_path / "mixed.yaml")[0].status == 0


def test_a_checkpoint_of_ours_of_other_classes(tiny, tmp_path):
    """Its layers are there, its aux scores are not; without its config its classes have no names."""
    torch.save({"state_dict": PSPNet(18, 7).state_dict()}, tmp_path / "city.pth")
    (tmp_path / "city.txt").write_text("\n".join(CITY))
    (tmp_path / "city.yaml").write_text(
        f"base: {tiny.path}\nDATA: {{classes: 7, names_path: {tmp_path}/city.txt}}\n"
        f"TEST: {{model_path: {tmp_path}/city.pth}}\n"
    )
    keys = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_classes", MAPPING, "DISTILL.weights.aux_mse", "0"]
    teacher = load.load(tiny.load(*keys, "DISTILL.teacher_config", str(tmp_path / "city.yaml")))
    output = teacher(torch.zeros(1, 3, 33, 33))
    assert output.logits.shape == (1, CLASSES, 5, 5) and output.aux is None and "layer3" in output.features
    with pytest.raises(UserError, match="does not hold the names of its classes.*DISTILL.teacher_config"):
        load.load(tiny.load(*keys, "DISTILL.teacher_path", str(tmp_path / "city.pth")))
    with pytest.raises(UserError, match="has 7 classes .*road.*DISTILL.teacher_classes"):
        load.load(tiny.load("DISTILL.teacher_layers", "18", "DISTILL.teacher_config", str(tmp_path / "city.yaml")))
    with pytest.raises(UserError, match="no auxiliary scores.*DISTILL.weights.aux_mse to 0"):
        load.load(tiny.load(*keys[:-1], "1", "DISTILL.teacher_config", str(tmp_path / "city.yaml")))


@pytest.mark.parametrize(
    "hint, words",
    [
        ("{layer: layer3, loss: at}", "the teacher has no layer3; its layers are logits"),
        ("{layer: logits, loss: fitnet}", "no adapter learns.*kl"),
        ("{layer: layer4, teacher_layer: logits, loss: cwd}", "no adapter learns"),
        ("{layer: logits, loss: dkd}", "dkd needs every class, and the teacher knows 3 of 4"),
    ],
)
def test_terms_that_a_teacher_of_other_classes_cannot_give(distil, city, hint, words):
    result, _ = distil(city, "DISTILL.teacher_classes", MAPPING, hints=f"[{hint}]")
    assert result.status == 2 and re.search(words, result.err), result.err
