"""A network with its BatchNorm folded computes the same, for both kinds of block."""

import pytest
import torch
from conftest import tiny_pspnet


@pytest.mark.parametrize("layers", [18, 50])
def test_folded_is_the_same_function(layers):
    image = torch.randn(2, 3, 33, 41)
    with torch.no_grad():
        before, after = tiny_pspnet(layers, "deep")(image), tiny_pspnet(layers, "deep").freeze()(image)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.aux, before.aux, rtol=1e-4, atol=1e-4)
    assert after.features.keys() == before.features.keys()
    for name, feature in after.features.items():
        assert (feature - before.features[name]).abs().max() < 1e-3 * before.features[name].abs().max() + 1e-4


def test_bfloat16_is_close():
    image = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        exact, rounded = tiny_pspnet()(image), tiny_pspnet().freeze(torch.bfloat16)(image.bfloat16())
    assert rounded.logits.dtype == torch.bfloat16
    assert (rounded.logits - exact.logits).abs().max() < 0.05 * exact.logits.abs().max()
