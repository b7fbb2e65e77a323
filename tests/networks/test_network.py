"""Checkpoints of other classes and other normalisation: taken on request, named, never in silence."""

import numpy as np
import pytest
import torch
from conftest import CLASSES, tiny_pspnet

from model.pspnet import PSPNet
from util import checkpoint, network
from util.errors import UserError


@pytest.fixture
def other(tmp_path):
    """A checkpoint of nine classes."""
    torch.manual_seed(0)
    net = PSPNet(18, 9)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "nine.pth")
    return net


def test_fine_tuning_from_other_classes_takes_all_but_the_last_layers(tiny, other, script, tmp_path, caplog):
    path = str(tmp_path / "nine.pth")
    with pytest.raises(UserError, match=r"PSPNet-18 of 4 classes.*cls.4.weight.*TRAIN.new_head True"):
        network.build(tiny.load("TRAIN.weight", path).train, tiny.load().data)
    with caplog.at_level("INFO"):
        net = network.build(tiny.load("TRAIN.weight", path, "TRAIN.new_head", "True").train, tiny.load().data)
    assert "cls.4.weight, cls.4.bias, aux.4.weight, aux.4.bias begin anew" in caplog.text
    for key, value in net.state_dict().items():
        last = key.startswith(network.LAST_LAYERS)
        assert last == (value.shape != other.state_dict()[key].shape)
        assert last or torch.equal(value, other.state_dict()[key]), key
    options = ["--config", tiny.path, "TRAIN.weight", path, "TRAIN.new_head", "True"]
    assert script("train_18.py", *options).status == 0
    assert script("train_18.py", *options).status == 0  # resumes: its own checkpoint has the right classes


def test_a_pspnets_file_gives_its_backbone_as_pretrained(tiny, other, tmp_path):
    net = network.build(tiny.load("TRAIN.pretrained", str(tmp_path / "nine.pth")).train, tiny.load().data)
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]) or not key.startswith("layer"), key


MEAN = ["DATA.mean", "[0.0, 0.0, 0.0]"]


def test_testing_with_another_normalisation_than_training_is_refused(tiny, script, fails):
    assert script("train_18.py", "--config", tiny.path).status == 0
    path = tiny.out / "model" / "train_epoch_1.pth"
    assert checkpoint.read(path)["normalisation"]["mean"] == [123.675, 116.28, 103.53]
    assert "was trained with DATA.mean [123.675" in fails("test_18.py", "--config", tiny.path, *MEAN)
    assert script("test_18.py", "--config", tiny.path).status == 0


def test_a_teacher_sees_images_as_in_its_own_training(tiny):
    """Whatever the student's normalisation is: an EfficientNet's ImageNet weights are for another than a ResNet's."""
    own, net = ([100.0, 110.0, 120.0], [50.0, 60.0, 70.0]), tiny_pspnet(18)
    content = {"state_dict": net.state_dict(), "normalisation": dict(zip(("mean", "std"), own, strict=True))}
    torch.save(content, tiny.out / "teacher.pth")
    options = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", str(tiny.out / "teacher.pth")]
    cfg, pixels = tiny.load(*options, *MEAN, "TRAIN.precision", "fp32"), torch.rand(2, 3, 33, 33) * 255

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        expected = net.eval()(normalised(*own))
        found = network.load_teacher(cfg)(normalised(cfg.data.mean, cfg.data.std))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert (network.load_teacher(tiny.load(*options))(normalised(*own)).logits - expected.logits).abs().max() > 0.01


def test_fine_tuning_with_another_normalisation_is_a_warning(tiny, script, caplog):
    assert script("train_18.py", "--config", tiny.path).status == 0
    path = tiny.out / "model" / "train_epoch_1.pth"
    options = ["TRAIN.weight", path, "TRAIN.save_path", tiny.out / "tuned", *MEAN]
    assert script("train_18.py", "--config", tiny.path, *options).status == 0
    assert "was trained with DATA.mean" in caplog.text


def test_a_std_of_pixels_from_0_to_1_is_warned_of(tiny, script, caplog):
    options = ["DATA.mean", "[0.485, 0.456, 0.406]", "DATA.std", "[0.229, 0.224, 0.225]"]
    script("train_18.py", "--check", "--config", tiny.path, *options)
    assert "is for pixels of 0 to 1" in caplog.text


def test_a_normalisation_of_another_form_is_no_statement_of_ours(tiny, tmp_path):
    torch.save({"state_dict": tiny_pspnet().state_dict(), "normalisation": {"mean": 0.5}}, tmp_path / "n.pth")
    assert network.load(str(tmp_path / "n.pth"), 18, CLASSES, data=tiny.load().data).classes == CLASSES


def test_numpy_numbers_in_a_checkpoint_are_read(tiny, tmp_path):
    """Other projects save scores and epochs as NumPy scalars, which weights_only refuses by default."""
    state = tiny_pspnet().state_dict()
    torch.save(
        {"state_dict": state, "epoch": np.int64(3), "best": np.float32(0.5), "curve": np.zeros(2)}, tmp_path / "n.pth"
    )
    net = network.load(str(tmp_path / "n.pth"), 18, CLASSES)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
