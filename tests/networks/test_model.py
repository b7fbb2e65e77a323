"""Shapes, parameter names, loading."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, tiny_pspnet

from model import backbone
from model.pspnet import PSPNet
from util import checkpoint, network
from util.errors import UserError
from util.pretrained import load_pretrained

pytestmark = pytest.mark.full_width


@pytest.mark.parametrize(("layers", "stem"), [(18, "plain"), (34, "deep"), (50, "deep"), (50, "plain")])
@pytest.mark.parametrize("size", [(33, 41), (30, 47)])
def test_output_shapes(layers, stem, size):
    net = PSPNet(layers, 5, stem).eval()
    with torch.no_grad():
        out = net(torch.randn(1, 3, *size))
    grid = tuple(-(-side // 8) for side in size)
    assert out.logits.shape == out.aux.shape == (1, 5, *grid)
    wide = 512 * backbone.RESNETS[layers].block.expansion
    shapes = {name: tuple(f.shape[1:]) for name, f in out.features.items()}
    quarter = tuple(-(-side // 4) for side in size)
    assert shapes == {
        "layer1": (wide // 8, *quarter),
        "layer2": (wide // 4, *grid),
        "layer3": (wide // 2, *grid),
        "layer4": (wide, *grid),
        "feature": (512, *grid),
        "aux_feature": (128 if layers < 50 else 256, *grid),
    }


def test_same_kind_of_output_in_training_and_testing():
    net = PSPNet(18, 3)
    image = torch.randn(2, 3, 33, 33)
    for mode in (True, False):
        out = net.train(mode)(image)
        assert out.logits.shape == (2, 3, 5, 5) and out.aux.shape == (2, 3, 5, 5)


def test_dilation_as_in_semseg():
    for layers in (18, 50):
        net = PSPNet(layers, 2)
        for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
            for block in stage:
                assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
                assert block.conv1.dilation == (1, 1)
                assert all(m.stride == (1, 1) for m in block.modules() if isinstance(m, torch.nn.Conv2d))
        assert net.layer2[0].downsample[0].stride == (2, 2)


@pytest.mark.parametrize("layers", [18, 50])
@pytest.mark.parametrize("stem", ["plain", "deep"])
def test_every_residual_branch_begins_at_zero(layers, stem):
    """So that a new network's blocks pass on what they are given (relu of the shortcut)."""
    for stage in backbone.stages(layers, stem)[1:]:
        for block in stage:
            last = block.bn3 if layers == 50 else block.bn2
            assert not last.weight.any()


def test_parameter_names_of_the_semseg_family():
    keys = set(PSPNet(18, 2).state_dict())
    for key in ("layer0.0.weight", "layer0.1.running_mean", "layer1.0.conv1.weight", "layer4.1.bn2.bias"):
        assert key in keys
    for key in ("ppm.features.0.1.weight", "ppm.features.3.2.running_var", "cls.0.weight", "cls.4.bias", "aux.4.bias"):
        assert key in keys
    assert {key.split(".")[0] for key in keys} == {*(f"layer{i}" for i in range(5)), "ppm", "cls", "aux"}
    deep = PSPNet(50, 2, "deep").state_dict()
    assert [deep[f"layer0.{i}.weight"].shape[0] for i in (0, 3, 6)] == [64, 64, 128]
    assert deep["layer1.0.conv1.weight"].shape == (64, 128, 1, 1)


def test_frozen_network_is_the_same_function():
    net, image = tiny_pspnet(), torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        before = net(image)
        after = tiny_pspnet().freeze()(image)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.aux, before.aux, rtol=1e-4, atol=1e-4)
    frozen = tiny_pspnet().freeze()
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())


def save(net, path, **changes):
    torch.save({"epoch": 1, "state_dict": net.state_dict(), **changes}, path)
    return str(path)


def test_load_round_trip(tmp_path):
    net = tiny_pspnet()
    path = save(net, tmp_path / "a.pth")
    loaded = network.load(path, 18, CLASSES)
    for key, value in net.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])
    assert network.load(path, 18, CLASSES, aux=False).aux is None


def test_stem_is_recognised(tmp_path):
    path = save(tiny_pspnet(stem="deep"), tmp_path / "a.pth")
    assert network.load(path, 18, CLASSES).stem == "deep"


@pytest.mark.parametrize(
    ("layers", "classes", "culprit"), [(34, CLASSES, "layer1.2"), (18, 7, "cls.4.weight"), (50, CLASSES, "missing")]
)
def test_wrong_checkpoint_names_the_difference(tmp_path, layers, classes, culprit):
    path = save(tiny_pspnet(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=culprit) as error:
        network.load(path, layers, classes)
    assert path in str(error.value)


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_pickle_that_runs_code_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(UserError, match="refused"):
        checkpoint.read(path)
    assert "code ran" not in capsys.readouterr().out


def test_truncated_checkpoint(tmp_path):
    path = tmp_path / "a.pth"
    save(tiny_pspnet(), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cut short"):
        checkpoint.read(path)


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save({"epoch": 1}, path)
    with pytest.raises(AttributeError):  # a local function cannot be pickled: the write breaks off
        checkpoint.save({"epoch": lambda: None}, path)
    assert checkpoint.read(path) == {"epoch": 1}


def test_imagenet_without_network_says_what_to_place_where(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: (_ for _ in ()).throw(OSError("no route"))
    )
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth.*place it in .*checkpoints") as error:
        load_pretrained(PSPNet(18, 2), "imagenet")
    assert "TRAIN.pretrained" in str(error.value)


@pytest.mark.parametrize("stem", ["plain", "deep"])
def test_pretrained_file(tmp_path, stem):
    source = tiny_pspnet(stem=stem)
    names = {"layer0.0": "conv1", "layer0.1": "bn1", "layer0.3": "conv2", "layer0.4": "bn2"}
    names |= {"layer0.6": "conv3", "layer0.7": "bn3"}
    state = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    for key, value in source.state_dict().items():
        head, rest = key.rsplit(".", 1)
        if key.startswith("layer"):
            state[f"{names.get(head, head)}.{rest}"] = value
    path = str(tmp_path / "resnet.pth")
    torch.save(state, path)
    net = PSPNet(18, 9, stem)
    load_pretrained(net, path)
    for key, value in net.state_dict().items():
        if key.startswith("layer"):
            assert torch.equal(value, source.state_dict()[key])
    with pytest.raises(UserError, match="stem"):
        other = "deep" if stem == "plain" else "plain"
        load_pretrained(PSPNet(18, 9, other), path)


@pytest.mark.parametrize("size", [(2, 3), (9, 9), (13, 6), (31, 30)])
def test_the_pyramids_convolution_is_that_of_the_enlarged_and_concatenated_maps(size):
    """Values and all gradients, in float64; (2, 3): fewer positions than bins."""
    net = PSPNet(18, 2).double()
    conv, x = net.cls[0], torch.randn(2, 512, *size, dtype=torch.float64, requires_grad=True)
    wanted = (x, conv.weight, *net.ppm.parameters())
    maps = net.ppm(x)
    enlarged = [F.interpolate(m, size, mode="bilinear", align_corners=True) for m in maps]
    plain = F.conv2d(torch.cat(enlarged, 1), conv.weight, padding=1)
    ours, toward = conv(maps), torch.randn_like(plain)
    torch.testing.assert_close(ours, plain)
    for own, other in zip(
        *(torch.autograd.grad(y, wanted, toward, retain_graph=True) for y in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(own, other)
