"""Testing against a slow, plain version of the published rules: cv2 resizing, one window at a time, float64 sums."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, tiny_pspnet
from hypothesis import given
from hypothesis import strategies as st

from util.evaluate import predict
from util.evaluate.protocol import resize

CROP = (33, 41)


@pytest.fixture(scope="module")
def net():
    return tiny_pspnet().freeze()


def plain(net, cfg, image, protocol):
    """(H, W, classes) probabilities, as the semseg family describes them."""
    mean, std = np.array(cfg.data.mean), np.array(cfg.data.std)

    def forward(window):
        x = torch.from_numpy(((window - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            y = F.interpolate(net(x).logits, x.shape[2:], mode="bilinear", align_corners=True)
        return y.softmax(1)[0].permute(1, 2, 0).double().numpy()

    def both(window):
        if not protocol.flip:
            return forward(window)
        return (forward(window) + forward(window[:, ::-1])[:, ::-1]) / 2

    height, width = image.shape[:2]
    total = np.zeros((height, width, CLASSES))
    for scale in protocol.scales:
        long_side = round(scale * protocol.base_size)
        short = round(long_side / max(height, width) * min(height, width))
        size = (short, long_side) if height > width else (long_side, short)
        scaled = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        h, w = scaled.shape[:2]
        pad_h, pad_w = max(CROP[0] - h, 0), max(CROP[1] - w, 0)
        top, left = pad_h // 2, pad_w // 2
        padded = cv2.copyMakeBorder(
            scaled, top, pad_h - top, left, pad_w - left, cv2.BORDER_CONSTANT, value=mean.tolist()
        )
        sums, counts = np.zeros((*padded.shape[:2], CLASSES)), np.zeros((*padded.shape[:2], 1))
        steps = [int(np.ceil(c * 2 / 3)) for c in CROP]
        grid = [int(np.ceil((s - c) / step)) + 1 for s, c, step in zip(padded.shape, CROP, steps, strict=False)]
        for i in range(grid[0]):
            for j in range(grid[1]):
                y = min(i * steps[0] + CROP[0], padded.shape[0]) - CROP[0]
                x = min(j * steps[1] + CROP[1], padded.shape[1]) - CROP[1]
                sums[y : y + CROP[0], x : x + CROP[1]] += both(padded[y : y + CROP[0], x : x + CROP[1]])
                counts[y : y + CROP[0], x : x + CROP[1]] += 1
        part = (sums / counts)[top : top + h, left : left + w]
        total += cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    return total / len(protocol.scales)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (20, 25), (33, 41), (34, 42), (61, 83)])
@pytest.mark.parametrize(("scales", "flip"), [([1.0], True), ([0.5, 1.25], True), ([1.0], False)])
def test_sliding_windows(net, tiny, shape, scales, flip):
    cfg = tiny.load()
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    protocol = predict.Protocol(64, scales, flip, "slide", CROP, 3)
    scaled = [torch.from_numpy(resize(image.astype(np.float32), s, 64)) for s in scales]
    ours = predict.Predictor(net, cfg, protocol, torch.float32)(scaled, shape)
    theirs = plain(net, cfg, image, protocol)
    np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), theirs, atol=2e-5)


@given(size=st.integers(9, 400), crop=st.integers(9, 200))
def test_windows_cover_everything_and_stay_inside(size, crop):
    size = max(size, crop)
    starts = predict._window_starts(size, crop)
    assert starts[0] == 0 and starts[-1] == size - crop
    assert all(0 < b - a <= np.ceil(crop * 2 / 3) for a, b in zip(starts, starts[1:], strict=False))


def test_whole_images(net, tiny):
    cfg = tiny.load()
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.float32)
    protocol = predict.Protocol(70, [1.0], False, "whole", CROP, 3)
    ours = predict.Predictor(net, cfg, protocol, torch.float32)([torch.from_numpy(image)], (50, 70))
    x = torch.from_numpy(((image - cfg.data.mean) / cfg.data.std).transpose(2, 0, 1)[None]).float()
    expected = F.interpolate(net(x).logits, (50, 70), mode="bilinear", align_corners=True).softmax(1)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
