"""Backbones of timm under the PSPNet: grids, weights, the scripts, what is refused. On timm's own tiny test models."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES
from torch import nn

from model.pspnet import STAGES, PSPNet
from model.timm_backbone import STRIDES, TimmBackbone, convert_sync_batchnorm
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
    shares = GradientShares(net, [])
    with shares:
        out = net(torch.randn(1, 3, 33, 33))
    found = shares.of({"layer4": out.features["layer4"].square().sum(), "aux": 0 * out.aux.sum()})
    assert found == {"share_layer4": pytest.approx(1), "share_aux": 0}


# Weights
