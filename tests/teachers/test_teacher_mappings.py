"""DISTILL.teacher_classes through the scripts: shipped mappings, and several teachers."""

import json
import re

import pytest
import torch
from conftest import CLASSES, ROOT, tiny_pspnet
from foreign import mask2former, save, segformer
from test_teacher_classes import CITY, OURS

from model.distill.classes import Averaged, Mapped
from model.pspnet import PSPNet
from tool.report import runs
from util import config
from util.data.lists import scored_list
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.metric import Scores
from util.teachers import load, names

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


def test_animals_taught_by_a_network_of_voc():
    """The shipped config, its mapping with the names of VOC's 21 classes."""
    cfg = config.load(ROOT / "config/animals/animals_deeplab_18.yaml")
    ours, voc = ((ROOT / f"dataset/{d}/{d}_names.txt").read_text().split() for d in ("animals", "voc2012"))
    groups = names.groups(ours, voc, cfg.distill.teacher_classes, "x")
    assert [[voc[i] for i in group] for group in groups] == [[name] for name in ours]
    assert cfg.test.compare.teacher == "exp/animals/deeplab_18/teacher/result/metrics.json"
    assert cfg.distill.weights.aux_mse == 0 < cfg.distill.weights.kl


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
    assert caplog.text.count("the teacher on this epoch's crops: mIoU") == 1


def test_such_a_teacher_is_tested_as_a_student_is(tiny, script, city, tmp_path):
    """By its own scores, into a folder of its own that the report takes for the teacher's."""
    keys = ["DISTILL.teacher_path", city, "DISTILL.teacher_classes", MAPPING, "DISTILL.weights.aux_mse", "0"]
    keys += [
        "TEST.mode",
        "whole",
        "TEST.flip",
        "False",
        "TRAIN.save_path",
        str(tmp_path / "model"),
        "TEST.save_folder",
        "",
    ]
    result = script("test_50_18.py", "--config", tiny.path, *keys, "TEST.teacher", "True")
    assert result.status == 0, result.err
    tested = runs.read(tmp_path / "teacher")
    cfg = tiny.load(*keys)
    pairs = scored_list(cfg.test.test_list, "", cfg.data)
    matrix = predict.validate(load.load(cfg), pairs, cfg, torch.float32)
    assert tested.metrics["mIoU"] == Scores.of(matrix).mIoU
    assert tested.metrics["network"] == {"layers": 50, "teacher_layers": None}
    assert "teacher hf:" in result.out and not tested.checkpoint.exists()


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
    for path in (tmp_path / "model" / "best.pth", tmp_path / "model" / ".." / "mixed.pth"):  # of the same run
        (tmp_path / "model").mkdir(exist_ok=True)
        torch.save({"state_dict": mixed}, path)
        named = ["DISTILL.teacher_config", str(tmp_path / "mixed.yaml"), "DISTILL.teacher_path", str(path)]
        assert torch.equal(load.load(tiny.load(*keys, *named))(image).logits, plain(image).logits)
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
