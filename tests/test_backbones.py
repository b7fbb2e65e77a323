"""Backbones of timm under the PSPNet: grids, weights, the scripts, what is refused. On timm's own tiny test models."""

import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES
from torch import nn

from model.pspnet import STAGES, PSPNet
from model.timm_backbone import STRIDES, TimmBackbone, convert_sync_batchnorm
from util import checkpoint, network
from util.errors import UserError
from util.pretrained import load_pretrained
from util.train.gradients import GradientShares

timm = pytest.importorskip("timm", reason="requirements-teachers.txt is not installed")

QUICK = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]
SLOW = ["resnetv2_50", "regnetx_002", "tf_efficientnet_lite0", "mobilenetv3_small_100", "mobilenetv4_conv_small"]
SLOW += ["convnext_tiny", "deit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"]
SLOW += ["swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "efficientvit_b0", "repvit_m0_9", "densenet121"]


def randomise_batchnorm(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def pspnet(name: str, classes: int | None = CLASSES) -> PSPNet:
    torch.manual_seed(0)
    return randomise_batchnorm(PSPNet(f"timm/{name}", classes)).eval()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_family(name):
    """Grids at sizes that nothing divides, a gradient for every weight, and the same function once frozen."""
    net, image = pspnet(name), torch.randn(2, 3, 65, 46)
    out = net(image)
    grids = {4: (17, 12), 8: (9, 6)}
    strides = dict(zip(STAGES, STRIDES, strict=True))
    for layer, channels in net.channels().items():
        assert out.layer(layer).shape == (2, channels, *grids[strides.get(layer, 8)]), layer
    net.train()
    sum(net(image).layer(layer).square().mean() for layer in net.channels()).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []
    backbone, heads = net.parameter_groups()
    assert {*backbone} == {*net.layer0.parameters()} and len(backbone) + len(heads) == len([*net.parameters()])
    with torch.no_grad():
        net.eval()
        before, after = net(image), net.freeze()(image)
    for layer in net.channels():
        torch.testing.assert_close(after.layer(layer), before.layer(layer), rtol=1e-3, atol=1e-3)


def test_dilated_where_timm_can():
    assert TimmBackbone("timm/test_resnet").reductions == TimmBackbone("timm/test_convnext").reductions == [4, 8, 8, 8]


class Patches(nn.Module):
    """The mean colour of each patch: its value says where the patch lies."""

    def forward(self, image):
        return [F.avg_pool2d(image, size) for size in (16, 16, 8, 32)]


@pytest.mark.parametrize(("height", "width"), [(161, 161), (150, 150)])
def test_maps_of_patches_lie_where_the_grid_has_its_points(height, width):
    """On an image whose value is the column, a map on the stride-8 grid is 0, 8, 16 ..., to half a pixel."""
    backbone = TimmBackbone("timm/test_vit")
    backbone.net, backbone.reductions = Patches(), [16, 16, 8, 32]
    image = torch.arange(width).float().expand(1, 3, height, width)
    for stride, x in zip(STRIDES, backbone(image), strict=True):
        assert x.shape[2:] == (-(-height // stride), -(-width // stride))
        columns = torch.arange(x.shape[3]) * stride
        inside = (columns > 32) & (columns < width - 40)  # at the border a patch is part padding
        assert inside.sum() > 5
        assert (x[0, 0, x.shape[2] // 2] - columns)[inside].abs().max() <= 0.51


def test_an_image_may_come_normalised_otherwise():
    net, image = TimmBackbone("timm/test_convnext").eval(), torch.rand(1, 3, 33, 33) * 255
    own, other = ((net.mean, net.std), ([100.0, 110.0, 120.0], [50.0, 60.0, 70.0]))

    def normalised(mean, std):
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        expected = net(normalised(*own))
        net.expect(*other)
        for x, y in zip(net(normalised(*other)), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def test_batchnorm_over_processes_keeps_its_activation():
    net, image = pspnet("test_efficientnet"), torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        expected = net(image).logits
        converted = convert_sync_batchnorm(net).eval()
        torch.testing.assert_close(converted(image).logits, expected)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.layer0.modules())
    assert isinstance(convert_sync_batchnorm(PSPNet(18, 2)).layer0[1], nn.SyncBatchNorm)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_shares_of_the_gradient_count_every_map(name):
    """layer4 of a transformer is not made of its layer3: a term on it has a share nevertheless."""
    net = pspnet(name)
    shares = GradientShares(net)
    with shares:
        out = net(torch.randn(1, 3, 33, 33))
    found = shares.of({"layer4": out.features["layer4"].square().sum(), "aux": 0 * out.aux.sum()})
    assert found == {"share_layer4": pytest.approx(1), "share_aux": 0}


# Weights


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
