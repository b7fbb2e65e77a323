# ruff: noqa: F401, F811 - fixtures of another file
"""Layers, schedules and unlabelled images of the toolbox."""

import pytest
import torch
from conftest import CLASSES, tiny_pspnet
from test_toolbox import distil, lines, teachers

from model.pspnet import LAYER_ZOOM_FACTOR, PSPNet
from util.errors import UserError
from util.train.hints import with_hints


def test_a_teacher_without_the_layer(tiny, teachers):
    cfg = tiny.load("DISTILL.teacher_path", "t.pth", "DISTILL.hints", "[{layer: aux_feature, loss: at}]")
    with pytest.raises(UserError, match="the teacher has no aux_feature"):
        with_hints(cfg.distill.hints, tiny_pspnet(18), PSPNet(18, CLASSES, aux=False))


def test_layers_are_what_they_say():
    """Channels and grids of every layer, for both kinds of blocks and a size that is no 8n + 1."""
    for layers in (18, 50):
        net = tiny_pspnet(layers)
        output = net(torch.zeros(1, 3, 35, 44))
        assert net.channels().keys() == LAYER_ZOOM_FACTOR.keys()
        for name, channels in net.channels().items():
            assert output.layer(name).shape == (1, channels, *output.grid(name)), name
        assert torch.equal(net.cls[4](output.layer("feature")), output.logits)
        assert torch.equal(net.aux[4](output.layer("aux_feature")), output.aux)


def test_a_schedule_moves_the_total(distil):
    text = "  schedules: {kl: {shape: constant, until: 1}, fitnet_layer4: {shape: linear}}\n"
    text += "  hints: [{layer: layer4, loss: fitnet}]\n"
    result, history = distil(text, "TRAIN.epochs", "2")
    assert result.status == 0, result.err
    weights = {"ce": 1, "aux_ce": 0.4, "aux_mse": 1, "kl": 1, "fitnet_layer4": 10}
    first, second = history
    assert [line["weight_kl"] for line in history] == [1, 0] and second["share_kl"] == 0 < first["share_kl"]
    # linear, at the two steps of the second epoch: 1/2 and 1/4 of the weight
    rest = sum(weights[name] * second[name] for name in ("ce", "aux_ce", "aux_mse"))
    assert rest + 5 * 0.4 * second["fitnet_layer4"] < second["loss"] < rest + 5 * 1.1 * second["fitnet_layer4"]


def test_unlabelled_images_teach(tiny, distil, caplog):
    """Supervised terms are as without them; distillation terms see them; a batch in two passes has the same share."""
    (tiny.out / "more.txt").write_text("".join(f"{tiny.root}/val{i}.jpg\n" for i in range(3)))
    more = ["DATA.unlabelled_list", tiny.out / "more.txt", "TRAIN.unlabelled_per_batch", "2"]
    # nothing learned, no dropout; BatchNorm sees the unlabelled images, so supervised terms are near, not equal
    still = ["TRAIN.base_lr", "1e-30", "TRAIN.dropout", "0"]
    hints = "  hints: [{layer: feature, loss: ifv}, {layer: logits, loss: cwd}]\n"
    with caplog.at_level("INFO"):
        result, (line,) = distil(hints, *more, *still)
    assert result.status == 0, result.err
    assert "8 images and 3 unlabelled" in caplog.text
    _, (alone,) = distil(hints, *still, folder="alone")
    assert line["ce"] == pytest.approx(alone["ce"], rel=0.2) and line["kl"] != alone["kl"]
    result, (parts,) = distil(hints, *more, *still, "TRAIN.accumulate", "2", folder="parts")
    assert result.status == 0, result.err
    assert parts["kl"] == pytest.approx(line["kl"], rel=0.5)


def test_unlabelled_needs_both_keys_and_a_teacher(tiny):
    with pytest.raises(UserError, match="go together"):
        tiny.load("DATA.unlabelled_list", "x.txt")
    with pytest.raises(UserError, match="needs a teacher"):
        tiny.load("DATA.unlabelled_list", "x.txt", "TRAIN.unlabelled_per_batch", "2")
