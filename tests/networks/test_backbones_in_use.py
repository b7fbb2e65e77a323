"""Backbones of timm in files, scripts and errors."""

import sys

import pytest
import torch
from conftest import CLASSES
from test_backbones import pspnet, randomise_batchnorm

from model.pspnet import PSPNet
from util import checkpoint, network
from util.errors import UserError
from util.pretrained import load_pretrained

timm = pytest.importorskip("timm", reason="requirements-teachers.txt is not installed")


@pytest.fixture(scope="module", params=["test_convnext", "test_vit", "test_efficientnet"])
def published(request, tmp_path_factory):
    """The name of a model, its state dict, and a folder with it in half precision as .pth and .safetensors."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = randomise_batchnorm(timm.create_model(request.param, num_classes=7))
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    folder = tmp_path_factory.mktemp("weights")
    torch.save(state, folder / "model.pth")
    save_file(state, folder / "model.safetensors")
    return request.param, model.eval(), folder


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_timms_names_fills_the_backbone(published, suffix):
    name, model, folder = published
    net = PSPNet(f"timm/{name}", 5).eval()
    load_pretrained(net, str(folder / f"model.{suffix}"))
    own = {key.removeprefix("layer0.net.").removeprefix("model.").replace(".", "_"): value
           for key, value in net.state_dict().items() if key.startswith("layer0.net.")}  # fmt: skip
    for key, value in model.state_dict().items():
        if (flat := key.replace(".", "_")) in own:
            torch.testing.assert_close(own.pop(flat), value, rtol=1e-2, atol=1e-3)
    assert not own


def test_a_file_that_does_not_fit_is_named(published, tmp_path):
    name, model, folder = published
    other = {"test_vit": "test_convnext"}.get(name, "test_vit")
    with pytest.raises(UserError, match=f"model.pth does not hold a backbone timm/{other}: missing"):
        load_pretrained(PSPNet(f"timm/{other}", 5), str(folder / "model.pth"))
    torch.save(model.state_dict() | {"blocks.99.weight": torch.zeros(2)}, tmp_path / "longer.pth")
    with pytest.raises(UserError, match="unknown blocks.99.weight"):
        load_pretrained(PSPNet(f"timm/{name}", 5), str(tmp_path / "longer.pth"))
    (tmp_path / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="cut.safetensors is not a readable checkpoint"):
        checkpoint.read(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="none.safetensors does not exist"):
        checkpoint.read(tmp_path / "none.safetensors")


def test_without_a_network_the_error_says_what_to_fetch(tiny, fails, monkeypatch):
    create = timm.create_model

    def offline(*arguments, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    options = ["--config", tiny.path, "TRAIN.pretrained", "imagenet", "TRAIN.backbone"]
    line = fails("train_18.py", *options, "timm/test_vit")
    assert "no route to host" in line and "in TRAIN.pretrained" in line
    assert "huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors" in line
    assert "timm has no weights for it" in fails("train_18.py", *options, "timm/test_mambaout")


def test_weights_of_another_normalisation_are_warned_of(tiny, published, caplog):
    name, _, folder = published
    options = ["TRAIN.backbone", f"timm/{name}", "TRAIN.pretrained", str(folder / "model.pth")]
    cfg = tiny.load(*options, "DATA.mean", "[127.5, 127.5, 127.5]")
    network.build(cfg.train, cfg.data)
    assert f"the weights of timm/{name} are for DATA.mean [" in caplog.text
    caplog.clear()
    net = PSPNet(f"timm/{name}", 2).layer0
    cfg = tiny.load(*options, "DATA.mean", str(net.mean), "DATA.std", str(net.std))
    network.build(cfg.train, cfg.data)
    assert "are for DATA.mean" not in caplog.text


# What the scripts do


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_train_resume_test_export(tiny, script, fails, caplog, name):
    options = ["--config", tiny.path, "TRAIN.backbone", f"timm/{name}"]
    assert script("train_18.py", "--check", *options).status == 0
    assert script("train_18.py", *options).status == 0
    path = tiny.out / "model" / "train_epoch_1.pth"
    assert checkpoint.read(path)["layers"] == f"timm/{name}"
    with caplog.at_level("INFO"):
        assert script("train_18.py", *options).status == 0
    assert "resuming from" in caplog.text
    assert script("test_18.py", *options).status == 0
    assert f'"layers": "timm/{name}"' in (tiny.out / "result" / "metrics.json").read_text()
    report = script("tool/report/compare.py", tiny.out, "--out", tiny.out / "report", "--repeats", "1")
    assert report.status == 0, report.err  # measures the network's cost
    plain = ["--config", tiny.path]
    line = fails("test_18.py", *plain)
    assert f"holds a PSPNet over timm/{name}" in line and f"set TRAIN.backbone to timm/{name}" in line
    assert "TRAIN.backbone (was timm/" in fails("train_18.py", *plain)
    assert f"set TRAIN.backbone to timm/{name}" in fails("train_18.py", *plain, "TRAIN.weight", path)
    bare = tiny.out / "bare.pth"
    assert script("tool/export/export.py", *options, "--to", "state_dict", "--out", bare).status == 0
    assert network.load(str(bare), f"timm/{name}", CLASSES, aux=False).layers == f"timm/{name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_onnx_at_any_size(tiny, script, name):
    pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
    (tiny.out / "model").mkdir()
    content = {"state_dict": pspnet(name).state_dict(), "layers": f"timm/{name}"}
    torch.save(content, tiny.out / "model" / "train_epoch_1.pth")
    options = ["--config", tiny.path, "--to", "onnx", "TRAIN.backbone", f"timm/{name}"]
    result = script("tool/export/export.py", *options)  # compares at three sizes, or fails
    assert result.status == 0, result.err


def test_a_teacher_of_timm(tiny, script, fails):
    path = tiny.out / "teacher.pth"
    net = pspnet("test_vit")
    torch.save({"state_dict": net.state_dict(), "layers": net.layers}, path)
    options = ["--config", tiny.path, "DISTILL.teacher_path", path]
    assert "set DISTILL.teacher_backbone to timm/test_vit" in fails("train_50_18.py", *options)
    options += ["DISTILL.teacher_backbone", "timm/test_vit", "DISTILL.cache", tiny.out / "cache"]
    options += ["DISTILL.hints", "[{layer: layer1, teacher_layer: layer3, loss: nfd}, {layer: layer4, loss: cwd}]"]
    first = script("train_50_18.py", *options)
    assert first.status == 0, first.err
    again = script("train_50_18.py", *options, "TRAIN.save_path", tiny.out / "again")
    assert again.status == 0, again.err
    lines = [(tiny.out / folder / "metrics.jsonl").read_text() for folder in ("model", "again")]
    assert lines[0] == lines[1] and "nfd_layer1" in lines[0]
    line = fails("train_50_18.py", *options, "DISTILL.teacher_backbone", "timm/test_resnet")
    assert "holds a PSPNet over timm/test_vit" in line


# What is refused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("timm/test_resnets", r"cannot make test_resnets a backbone \(Unknown model.*did you mean timm/test_resnet\?"),
        ("timm/resnet18.nobody", "Invalid pretrained tag"),
        ("timm/levit_128", "timm/levit_128 does not give four maps of images of any size"),
        ("resnet18", "TRAIN.backbone: write timm/NAME"),
        ("timm/hf-hub:someone/model", "TRAIN.backbone: write timm/NAME"),
    ],
)
def test_a_name_that_is_no_backbone(tiny, fails, name, text):
    import re

    assert re.search(text, fails("train_18.py", "--config", tiny.path, "TRAIN.backbone", name))


def test_a_deep_stem_is_no_key_of_timm(tiny, fails):
    options = ["TRAIN.backbone", "timm/test_vit", "TRAIN.stem", "deep"]
    assert "stem deep is of ResNets" in fails("train_18.py", "--config", tiny.path, *options)


def test_without_timm_or_safetensors_the_error_names_the_requirements(tiny, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    line = fails("train_18.py", "--config", tiny.path, "TRAIN.backbone", "timm/test_resnet")
    assert "timm/test_resnet needs timm: pip install -r requirements-teachers.txt" in line
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    line = fails("train_18.py", "--config", tiny.path, "TRAIN.weight", "x.safetensors")
    assert "x.safetensors needs safetensors: pip install -r requirements-teachers.txt" in line
