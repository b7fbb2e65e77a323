"""DISTILL.cache: what is read is what was computed, and whatever else lies there is not read."""

import json
import os
import shutil

import cv2
import pytest
import torch
from conftest import tiny_pspnet
from test_resume import same

from model.pspnet import PSPNet
from util import distributed
from util.train.teacher_cache import TeacherCache


@pytest.fixture
def cached(tiny, command, script, caplog):
    """cached(run, *options) distils with a cache -> (its folder, crops that the teacher was asked about, log)."""

    def call(name, *options, status=0):
        asked = []
        caplog.clear()
        caplog.set_level("INFO")

        def forward(self, image, real=PSPNet.forward):
            if not self.training and image.shape[2] == 33:  # no student, and no whole picture of a validation
                asked.append(len(image))
            return real(self, image)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PSPNet, "forward", forward)
            options = [*map(str, options)]
            result = script(
                "train_50_18.py", *command(tiny.out / name, "DISTILL.cache", str(tiny.out / "cache"), *options)
            )
        assert result.status == status, result
        return tiny.out / name, sum(asked), caplog.text

    return call


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def records(tiny, layer="logits"):
    return sorted((tiny.out / "cache").glob(f"*/{layer}/*"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_second_run_learns_the_same_without_the_teacher(tiny, cached, precision):
    options = ["DISTILL.precision", precision]
    first, asked, log = cached("first", *options)
    assert asked == 24 and "0.00 GB exist" in log
    second, asked, _ = cached("second", *options, "TRAIN.workers", 1)
    assert asked == 0
    same(first, second)


def test_the_first_steps_losses_are_those_without_a_cache_to_16_bits(tiny, cached, command, script):
    """Later ones differ by what the weights have become."""
    one = ["TRAIN.epochs", "1", "TRAIN.batch_size", "8"]
    cached("first", *one)
    read, asked, _ = cached("second", *one)
    assert asked == 0
    plain = tiny.out / "plain"
    script("train_50_18.py", *command(plain, *one))
    (ours,), (theirs,) = lines(read), lines(plain)
    for name in ("ce", "kl", "aux_mse", "aux_ce"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_other_students_losses_batches_and_temperatures_share_it(tiny, cached):
    cached("first")
    hint = "[{layer: logits, loss: cwd, weight: 3}]"
    changes = "TRAIN.base_lr 0.02 TRAIN.batch_size 4 TRAIN.accumulate 2 DISTILL.temperature 4 TRAIN.layers 34".split()
    assert cached("second", *changes, "DISTILL.hints", hint)[1] == 0
    assert cached("third", "TRAIN.epochs", "2")[1] == 0
    assert cached("longer", "TRAIN.epochs", "4")[1] == 8  # the fourth epoch's


@pytest.mark.parametrize("change", ["TRAIN.manual_seed 1", "TRAIN.scale_max 1.5", "DATA.std [50.0,57.0,57.0]",
                                    "DISTILL.precision bf16", "TRAIN.blur_prob 0"])  # fmt: skip
def test_what_changes_the_outputs_is_another_cache(tiny, teacher, change):
    def folder(*options):
        cfg = tiny.load(*teacher, "DISTILL.cache", str(tiny.out / "cache"), *options)
        net = tiny_pspnet().to(distributed.precision(cfg.distill.precision))
        return TeacherCache(cfg, net, ["logits"]).folder

    same = ["TRAIN.base_lr", "0.5", "DISTILL.precision", "fp32"]
    assert folder("DISTILL.precision", "fp32") == folder(*same) != folder(*same, *change.split())


def test_another_teacher_is_another_cache(tiny, cached):
    cached("first")
    torch.save({"state_dict": tiny_pspnet(seed=1).state_dict()}, tiny.out / "other.pth")
    assert cached("second", "DISTILL.teacher_path", tiny.out / "other.pth")[1] == 24


def test_a_changed_image_is_asked_again(tiny, cached, tmp_path):
    data = tmp_path / "copy"
    shutil.copytree(tiny.root, data)
    cached("first", "DATA.data_root", data)
    image = cv2.imread(str(data / "train0.jpg"))
    cv2.imwrite(str(data / "train0.jpg"), 255 - image)
    assert cached("second", "DATA.data_root", data)[1] == 6  # a batch of two, in each of three epochs
    assert cached("third", "DATA.data_root", data)[1] == 0


def test_damage_is_a_miss_and_is_mended(tiny, cached):
    first, _, _ = cached("first")
    with records(tiny)[0].open("r+b") as file:  # one bit of one map
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 4]))
    whole = records(tiny, "aux")[2]
    os.truncate(whole, whole.stat().st_size - 5)  # cut short, as by a kill
    second, asked, _ = cached("second")
    assert asked == 4
    same(first, second)
    assert cached("third")[1] == 0


def test_hints_bring_their_layers(tiny, cached):
    cached("first")
    hints = "[{layer: layer2, loss: at}, {layer: layer1, loss: fitnet}]"
    first, asked, _ = cached("hinted", "DISTILL.hints", hints)
    assert asked == 24  # logits and aux were there, the others were not
    again, asked, _ = cached("again", "DISTILL.hints", hints)
    assert asked == 0
    same(first, again)
    size = (records(tiny)[0].stat().st_size, records(tiny, "layer1")[0].stat().st_size)
    assert size == (8 * (8 + 2 * 4 * 5 * 5), 8 * (8 + 2 * 8 * 9 * 9))


def test_images_without_labels(tiny, cached):
    (tiny.out / "more.txt").write_text("val0.jpg\nval1.jpg\nval2.jpg\n")
    options = ["DATA.unlabelled_list", tiny.out / "more.txt", "TRAIN.unlabelled_per_batch", "2"]
    first, asked, _ = cached("first", *options)
    assert asked == 48
    second, asked, _ = cached("second", *options)
    assert asked == 0
    same(first, second)


def test_a_stopped_run_goes_on(tiny, cached, monkeypatch):
    """Records of the steps before are there; the end is that of a run that nothing stopped."""
    whole, _, _ = cached("whole")
    shutil.rmtree(tiny.out / "cache")
    from util.train.step import Stepper

    def step(self, parts, number, seed, real=Stepper.step):
        real(self, parts, number, seed)
        if number == 5:
            os.kill(os.getpid(), 15)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        cached("parts", status=75)
    parts, asked, _ = cached("parts")
    assert asked == 12
    same(whole, parts)
