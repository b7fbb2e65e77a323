"""Cross entropy in blocks of rows is the plain formula."""

import pytest
import torch
import torch.nn.functional as F

from model import upsample
from model.labels import Labels
from model.loss import cross_entropy

VOID = 255


def plain_cross_entropy(logits, labels):
    """The formula of cross_entropy, with full-size scores."""
    scores = F.interpolate(logits, labels.label.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(scores, labels.label.where(labels.mask, -100), reduction="sum") / labels.count


@pytest.mark.parametrize("size", [(33, 41), (30, 50), (1, 9), (5, 7)])
@pytest.mark.parametrize("block", [1, 300, 1 << 20])
def test_cross_entropy_in_blocks_is_the_plain_one(size, block, monkeypatch):
    monkeypatch.setitem(upsample.BLOCK, "cpu", block)
    torch.manual_seed(0)
    logits = (4 * torch.randn(2, 5, (size[0] - 1) // 8 + 1, (size[1] - 1) // 8 + 1)).requires_grad_()
    label = torch.randint(0, 5, (2, *size))
    label[0, :, :3] = VOID
    labels = Labels.of(label, VOID)
    ours, plain = cross_entropy(logits, labels), plain_cross_entropy(logits, labels)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(3 * loss, logits)[0] for loss in (ours, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits, labels), plain, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_nothing_but_void_is_zero():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, Labels.of(torch.full((1, 9, 9), VOID), VOID))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_cross_entropy_under_autocast_is_of_float32():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 3, 3), Labels.of(torch.randint(0, 3, (1, 17, 17)), VOID)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(logits, labels)
    torch.testing.assert_close(loss, plain_cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)
