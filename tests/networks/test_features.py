"""A backbone as a teacher of features: hints alone, on images without labels, from published weights or from a file."""

import json

import pytest
import torch
from conftest import CLASSES, ROOT, python, tiny_pspnet

from model.pspnet import PSPNet
from util import checkpoint, config, network
from util.data.loader import ResumableBatchSampler, TrainData
from util.errors import UserError
from util.evaluate import testing

STEM = {"layer0.0": "conv1", "layer0.1": "bn1"}


@pytest.fixture
def resnet(tmp_path) -> str:
    """A classification ResNet-50's file."""
    torch.manual_seed(1)
    state = {"fc.weight": torch.zeros(7, 9)}
    for key, value in PSPNet(50, 2).state_dict().items():
        head, _, rest = key.rpartition(".")
        if key.startswith("layer"):
            state[f"{STEM.get(head, head)}.{rest}"] = value
    torch.save(state, tmp_path / "resnet50.pth")
    return str(tmp_path / "resnet50.pth")


@pytest.fixture
def options(tiny, resnet) -> list[str]:
    """Of a run without any label: two steps an epoch, on the eight training images."""
    lines = (tiny.root / "train.txt").read_text().splitlines()
    (tiny.out / "images.txt").write_text("".join(f"{line.split()[0]}\n" for line in lines))
    hints = "[{layer: layer4, loss: nfd}, {layer: layer3, loss: cwd, weight: 1}]"
    found = f"--config {tiny.path} DATA.unlabelled_list {tiny.out}/images.txt DISTILL.teacher_path {resnet}"
    return [*found.split(), "DATA.train_list", "", "DISTILL.weights", NO_WEIGHTS, "DISTILL.hints", hints]


NO_WEIGHTS = "{ce: 0, kl: 0, aux_mse: 0, aux_ce: 0}"


def test_features_without_labels_start_a_students_training(tiny, script, options):
    assert script("train_50_18.py", "--check", *options).status == 0
    result = script("train_50_18.py", *options)
    assert result.status == 0, result.err
    (line,) = map(json.loads, (tiny.out / "model" / "metrics.jsonl").read_text().splitlines())
    assert {"nfd_layer4", "cwd_layer3", "loss"} <= line.keys() and not {"ce", "kl", "train_mIoU"} & line.keys()
    path = tiny.out / "model" / "train_epoch_1.pth"
    state, new = checkpoint.read(path)["state_dict"], network.build(tiny.load().train, tiny.load().data).state_dict()
    torch.manual_seed(0)
    assert state.keys() == new.keys() and state["cls.4.weight"].shape[0] == CLASSES
    assert script("train_50_18.py", *options, "TRAIN.epochs", "1").status == 0  # resumes: nothing left to do
    tuned = ["--config", tiny.path, "TRAIN.weight", path, "TRAIN.new_head", "True", "TRAIN.save_path", tiny.out / "t"]
    assert script("train_18.py", *tuned).status == 0


def test_a_backbone_is_no_teacher_among_others(fails, options, resnet):
    line = fails("train_50_18.py", *options, "DISTILL.teacher_path", f"[{resnet}, {resnet}]")
    assert "is a backbone without classes: it teaches alone" in line


def test_what_is_trained_is_the_backbone(tiny, script, options):
    """The hints' gradient reaches layer0 to layer4; the heads stay as they begin."""
    result = script("train_50_18.py", *options, "TRAIN.keep", "9", "TRAIN.epochs", "2")
    assert result.status == 0, result.err
    one, two = (checkpoint.read(tiny.out / "model" / f"train_epoch_{i}.pth")["state_dict"] for i in (1, 2))
    for key, value in one.items():
        if key.endswith(("weight", "bias")):
            assert torch.equal(value, two[key]) == (not key.startswith("layer")), key


@pytest.mark.slow
def test_two_processes(tiny, options):
    """Heads that no term reaches would stop DistributedDataParallel."""
    result = python("train_50_18.py", *options, "TRAIN.epochs", "2", processes=2)
    assert result.returncode == 0, result.stderr


def test_hints_and_labels_with_a_backbone_as_teacher(tiny, script, resnet):
    hints = "[{layer: layer4, loss: nfd}]"
    found = ["--config", tiny.path, "DISTILL.teacher_path", resnet, "DISTILL.hints", hints, "DISTILL.cache", tiny.out]
    result = script("train_50_18.py", *found, "DISTILL.weights", "{ce: 1, kl: 0, aux_mse: 0, aux_ce: 0.4}")
    assert result.status == 0, result.err
    assert {"ce", "nfd_layer4"} <= json.loads((tiny.out / "model" / "metrics.jsonl").read_text()).keys()


def test_a_teacher_with_logits_teaches_without_labels(tiny, script, options, teacher):
    weights = ["DISTILL.weights", "{ce: 0, kl: 1, aux_mse: 1, aux_ce: 0}", "DISTILL.hints", "[]"]
    result = script("train_50_18.py", *options, *teacher, *weights)
    assert result.status == 0, result.err
    assert {"kl", "aux_mse"} <= json.loads((tiny.out / "model" / "metrics.jsonl").read_text()).keys()


def test_a_transformer_teaches_from_its_file(tiny, script, options):
    timm = pytest.importorskip("timm", reason="requirements-teachers.txt is not installed")
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit").state_dict(), tiny.out / "vit.safetensors")
    found = ["DISTILL.teacher_backbone", "timm/test_vit", "DISTILL.teacher_path", tiny.out / "vit.safetensors"]
    result = script("train_50_18.py", *options, *found)
    assert result.status == 0, result.err
    cfg = tiny.load(*map(str, [*options[2:], *found]), "DATA.std", "[50.0, 60.0, 70.0]")
    net = network.load_teacher(cfg)  # its own normalisation, whatever DATA's
    (scale, shift), mean, own = net.rescale[:, :, 0, 0], torch.tensor(cfg.data.mean), net.layer0
    torch.testing.assert_close(scale, torch.tensor([50.0, 60.0, 70.0]) / torch.tensor(own.std))
    torch.testing.assert_close(shift, (mean - torch.tensor(own.mean)) / torch.tensor(own.std))


def test_an_epoch_is_every_image_once(tiny, options):
    cfg = tiny.load(*options[2:], "TRAIN.epochs", "2")
    batches = list(ResumableBatchSampler(TrainData(cfg.data, cfg.train, 0)))
    assert [{epoch for epoch, _ in batch} for batch in batches] == [{0}, {0}, {1}, {1}]
    assert sorted(index for batch in batches[:2] for _, index in batch) == list(range(8))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["DISTILL.weights.ce", "1"], "set DISTILL.weights.ce and aux_ce to 0"),
        (["DISTILL.weights.kl", "1"], "is a backbone without heads: set DISTILL.weights.kl and aux_mse to 0"),
        (["DISTILL.hints", "[]"], "name losses on layer1 to layer4 in DISTILL.hints"),
        (["DISTILL.hints", "[{layer: logits, loss: cwd}]"], "the teacher has no logits; its layers are layer1, layer2"),
        (["DISTILL.hints", "[{layer: layer4, loss: ifv}]"], "ifv needs labels, and DATA.train_list is empty"),
        (["TRAIN.evaluate", "True"], "TRAIN.evaluate to False"),
        (["TRAIN.unlabelled_per_batch", "2"], "TRAIN.unlabelled_per_batch to 0"),
        (["DATA.unlabelled_list", ""], "DATA.train_list is missing"),
        (["TRAIN.batch_size", "9"], "images.txt has 8 images, fewer than TRAIN.batch_size 9"),
        (["DISTILL.teacher_layers", "18"], "does not hold a ResNet-18"),
    ],
)
def test_what_is_asked_for_in_vain_is_named(fails, options, changes, text):
    assert text in fails("train_50_18.py", *options, *changes)


def test_the_shipped_config_is_one_without_labels():
    cfg = config.load(ROOT / "config/animals/animals_features_18.yaml")
    assert cfg.data.epoch_list[1] == "DATA.unlabelled_list" and cfg.train.pretrained == "none"


def test_published_weights_teach_by_the_name_imagenet(tiny, options, monkeypatch):
    asked = []
    monkeypatch.setattr(network, "load_pretrained", lambda net, *rest: asked.append((net.layers, net.classes, *rest)))
    cfg = tiny.load(*options[2:], "DISTILL.teacher_path", "imagenet", "DISTILL.teacher_layers", "34")
    assert network.load_teacher(cfg).cls is None
    assert asked == [(34, None, "imagenet", "DISTILL.teacher_path")]
    with pytest.raises(UserError, match="does not exist"):
        network.load_teacher(tiny.load(*options[2:], "DISTILL.teacher_path", "imagenot"))


def test_published_weights_that_cannot_be_fetched_name_the_key(fails, options, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    line = fails("train_50_18.py", *options, "DISTILL.teacher_path", "imagenet")
    assert "could not be downloaded" in line and "set DISTILL.teacher_path to a file of them" in line


def test_what_has_no_scores_is_not_tested(tiny, script, tmp_path):
    torch.save(PSPNet(18, None).state_dict(), tmp_path / "backbone.pth")
    hints = "[{layer: layer4, loss: nfd}]"
    keys = ["DISTILL.teacher_layers", 18, "DISTILL.teacher_path", tmp_path / "backbone.pth", "DISTILL.hints", hints]
    keys += ["DISTILL.weights.kl", 0, "DISTILL.weights.aux_mse", 0, "TEST.teacher", True]
    result = script("test_50_18.py", "--config", tiny.path, *keys)
    assert result.status == 2 and "backbone.pth (DISTILL.teacher_path) gives no class scores" in result.err


def test_the_teacher_is_tested_in_the_precision_of_the_test(tiny, tmp_path):
    path = str(tmp_path / "t.pth")
    torch.save({"state_dict": tiny_pspnet(18).state_dict()}, path)
    keys = ["DISTILL.teacher_layers", "18", "DISTILL.teacher_path", path, "DISTILL.precision", "fp32"]
    predictor = testing.predictor_of(tiny.load(*keys, "TEST.teacher", "True", "TEST.precision", "bf16"))
    assert {p.dtype for p in predictor.net.parameters()} == {predictor.dtype} == {torch.bfloat16}
