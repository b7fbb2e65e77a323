"""Labels that contradict the config: renamed by DATA.label_map, refused, or warned of."""

import logging

import cv2
import numpy as np
import pytest
import torch
from conftest import CLASSES, VOID, save_palette
from PIL import Image

from model.labels import Labels
from model.loss import cross_entropy
from util.data.decode import read_image, read_label
from util.data.label_map import check_labels
from util.data.transform import Augment
from util.errors import UserError
from util.evaluate.predict import Predictor
from util.evaluate.protocol import protocol_for_testing

LABEL = np.array([[0, 1, 2], [3, 1, 0]], np.uint8)
COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def read(path, label_map, classes=4):
    return read_label(path, (2, 3), classes, VOID, label_map).tolist()


def test_values_are_renamed(tmp_path):
    Image.fromarray(LABEL).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", {0: 255, 1: 0, 2: 1, 3: 2}) == [[255, 0, 1], [2, 0, 255]]
    assert read(tmp_path / "a.png", {1: 1, "other": 0}, classes=2) == [[0, 1, 0], [0, 1, 0]]
    with pytest.raises(UserError, match=r"a.png: the value 3 is not in DATA.label_map; name it.*other: 255"):
        read(tmp_path / "a.png", {0: 0, 1: 1, 2: 2})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_classes(tmp_path, mode):
    Image.fromarray(COLORS[LABEL]).convert(mode).save(tmp_path / "a.png")
    named = {"255 0 0": 0, "0 255 0": 1, "0 0 255": 2, "0 0 0": 255}
    assert read(tmp_path / "a.png", named, classes=3) == [[255, 0, 1], [2, 0, 255]]
    del named["0 0 255"]
    with pytest.raises(UserError, match="the colour 0 0 255 is not in DATA.label_map"):
        read(tmp_path / "a.png", named, classes=3)
    assert read(tmp_path / "a.png", {**named, "other": 255}, classes=3)[1][0] == 255


@pytest.mark.parametrize(
    ("value", "words"),
    [("{0: 9}", "gives 9, neither a class"), ("{0 0: 1}", "DATA.label_map"), ("{-1: 300}", "DATA.label_map")],
)
def test_mistakes_in_a_map(tiny, value, words):
    with pytest.raises(UserError, match=words):
        tiny.load("DATA.label_map", value)


def test_a_map_reaches_training_and_testing(tiny, script):
    """Labels from 1, void 0, as many tools write them: the scores are those of the same labels from 0."""
    data = tiny.out / "data"
    data.mkdir()
    for split in ("train", "val"):
        lines = []
        for line in (tiny.root / f"{split}.txt").read_text().split("\n")[:-1]:
            image, name = line.split()
            label = np.asarray(Image.open(tiny.root / name))
            Image.fromarray(np.where(label == VOID, 0, label + 1).astype(np.uint8)).save(data / name)
            lines.append(f"{tiny.root / image} {data / name}\n")
        (data / f"{split}.txt").write_text("".join(lines))
    keys = [
        "DATA.train_list",
        data / "train.txt",
        "DATA.val_list",
        data / "val.txt",
        "TEST.test_list",
        data / "val.txt",
    ]
    keys += ["DATA.label_map", "{0: 255, 1: 0, 2: 1, 3: 2, 4: 3}", "TRAIN.save_path", tiny.out / "mapped"]
    for options in ([], keys):
        assert script("train_18.py", "--config", tiny.path, *options).status == 0
    plain, mapped = ((tiny.out / name / "metrics.jsonl").read_text() for name in ("model", "mapped"))
    assert plain == mapped


def test_masks_of_0_and_255_are_refused_with_the_remedy(tiny, tmp_path):
    for i in range(3):
        Image.fromarray(np.where(i == LABEL, 255, 0).astype(np.uint8)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    with pytest.raises(UserError, match=r"road has no pixel.*DATA.label_map .\{0: 0, 255: 1\}"):
        check_labels(paths, ["rest", "road"], COLORS, VOID)
    check_labels(paths, ["rest", "road", "car"], COLORS, VOID)
    Image.fromarray((LABEL > 1).astype(np.uint8)).save(tmp_path / "1.png")
    check_labels(paths, ["rest", "road"], COLORS, VOID)


def test_palettes_that_contradict_are_refused(tmp_path):
    def save(name, palette):
        picture = Image.fromarray(LABEL, "P")
        picture.putpalette([value for color in palette for value in color])
        picture.save(tmp_path / name)
        return tmp_path / name

    names = ["sky", "land", "road", "car"]
    check_labels([save("a.png", COLORS.tolist())], names, COLORS, VOID)
    with pytest.raises(UserError, match=r"value 1 \(land\) the colour of road"):
        check_labels([save("b.png", COLORS[[0, 2, 1, 3]].tolist())], names, COLORS, VOID)
    foreign = [[9, 9, 9], [8, 8, 8], [7, 7, 7], [6, 6, 6]]
    check_labels([save("c.png", foreign), save("d.png", foreign)], names, COLORS, VOID)
    with pytest.raises(UserError, match="another colour than the labels before"):
        check_labels([save("c.png", foreign), save("d.png", foreign[::-1])], names, COLORS, VOID)


def test_lossy_labels_are_refused(tmp_path):
    Image.fromarray(LABEL).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="a.jpg is a JPEG.*PNG"):
        read(tmp_path / "a.jpg", None)


def test_pairs_change_places_in_mirrored_crops_alone(tiny):
    cfg = tiny.load(*"TRAIN.scale_min 1.0 TRAIN.scale_max 1.0 TRAIN.rotate_prob 0 TRAIN.blur_prob 0".split(),
                    "DATA.flip_pairs", "[[1, 3]]")  # fmt: skip
    image, label = np.zeros((33, 33, 3), np.uint8), np.repeat(np.arange(33, dtype=np.uint8)[None] // 9, 33, 0)
    label[0] = VOID
    for prob, expected in ((0.0, label), (1.0, np.where(label == VOID, VOID, (4 - label) % 4)[:, ::-1])):
        train = cfg.train.model_copy(update={"flip_prob": prob})
        assert np.array_equal(Augment(cfg.data, train)(image, label, np.random.default_rng(0))[1], expected)


class Sided(torch.nn.Module):
    """Says class 1 in the left half of what it sees and class 3 in the right one, mirrored or not."""

    def forward(self, image):
        logits = torch.zeros(len(image), CLASSES, 5, 5)
        logits[:, 1, :, :2] = logits[:, 3, :, 3:] = 9.0
        return type("O", (), {"logits": logits})


def test_pairs_change_places_in_the_mirrored_half_of_testing(tiny):
    sure = []
    for pairs in ("[]", "[[1, 3]]"):
        cfg = tiny.load("DATA.flip_pairs", pairs, "TEST.mode", "whole")
        predictor = Predictor(Sided(), cfg, protocol_for_testing(cfg), torch.float32)
        sure.append(predictor([torch.zeros(33, 33, 3)], (33, 33))[1, :, 0].min().item())
    assert sure[0] < 0.6 < 0.9 < sure[1]


@pytest.mark.parametrize("pairs", ["[[1, 1]]", "[[0, 9]]", "[[1, 2], [2, 3]]", "[[1]]"])
def test_mistakes_in_pairs(tiny, pairs):
    with pytest.raises(UserError, match="flip_pairs"):
        tiny.load("DATA.flip_pairs", pairs)


@pytest.mark.parametrize("zoom", [1, 2])
def test_class_weights_multiply_each_pixels_cross_entropy(zoom):
    """Value and gradient, also of the upsampled form, against one class at a time."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    size = 4 * zoom + 1
    label = torch.randint(0, 3, (2, size, size), generator=generator)
    label[0, 0] = VOID
    labels, weights = Labels.of(label, VOID), [0.5, 2.0, 0.0]
    total = cross_entropy(logits, labels, weights)
    (gradient,) = torch.autograd.grad(total, logits)
    alone = [
        weight * cross_entropy(logits, Labels(label, label == index, labels.count))
        for index, weight in enumerate(weights)
    ]
    torch.testing.assert_close(total, sum(alone))
    torch.testing.assert_close(gradient, torch.autograd.grad(sum(alone), logits)[0])


def test_class_weights_need_one_number_a_class(tiny):
    with pytest.raises(UserError, match="TRAIN.class_weights has 2 numbers"):
        tiny.load("TRAIN.class_weights", "[1.0, 2.0]")


def test_training_says_which_classes_have_no_pixel(tiny, script, caplog):
    (tiny.out / "names.txt").write_text("sky\nland\nroad\ncar\nleft arm\n")
    (tiny.out / "colors.txt").write_text("0 0 0\n9 0 0\n0 9 0\n0 0 9\n9 9 9\n")
    options = ["DATA.classes", "5", "DATA.names_path", tiny.out / "names.txt", "DATA.colors_path"]
    with caplog.at_level(logging.WARNING):
        assert script("train_18.py", "--config", tiny.path, *options, tiny.out / "colors.txt").status == 0
    assert "in no label of this epoch's crops: left arm" in caplog.text
    assert "wrong side of left arm" in caplog.text and "DATA.flip_pairs" in caplog.text
    assert "void" not in caplog.text


def test_training_says_when_nearly_all_is_void(tiny, script, caplog):
    with caplog.at_level(logging.WARNING):
        options = ["DATA.label_map", "{other: 255}"]
        assert script("train_18.py", "--config", tiny.path, *options).status == 0
    assert "100.0 % of this epoch's crops is void" in caplog.text


def test_pictures_of_10_and_12_bits(tmp_path):
    """They come in files of 16 bits, and would be almost black."""
    bright = np.full((40, 50, 3), 4095, np.uint16)
    bright[:20] = 2048
    for name in ("a.png", "a.jp2"):
        cv2.imwrite(str(tmp_path / name), bright)
        with pytest.raises(UserError, match=f"{name} has 16 bits and no value above 4095; set DATA.image_max"):
            read_image(tmp_path / name, None)
        found = read_image(tmp_path / name, 4095)
        assert (found[:20] == 128).all() and (found[20:] == 255).all()
    cv2.imwrite(str(tmp_path / "b.png"), bright * 16)
    assert read_image(tmp_path / "b.png", None).max() == 255  # 16 bits, all used


def test_pictures_of_floats_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 5), np.float32)).save(tmp_path / "a.tif")
    check_labels([tmp_path / "a.tif"], ["a", "b"], np.zeros((256, 3), np.uint8), 255)  # leaves it to read_label
    with pytest.raises(UserError, match="a.tif is a F picture"):
        read_label(tmp_path / "a.tif", (4, 5), 2, 255)
    with pytest.raises(UserError, match="a.tif cannot be decoded"):
        read_image(tmp_path / "a.tif", None)
    save_palette(LABEL, tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", None).shape == (2, 3, 3)
