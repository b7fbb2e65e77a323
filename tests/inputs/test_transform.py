"""Augmentation: image and label stay together, what lies outside is void, draws depend on the key alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import VOID

from util.data.loader import ResumableBatchSampler, TrainData
from util.data.transform import Augment

# A label that can be read off its image: class = (red > 128) + 2 * (green > 128).
OVERRIDES = ["TRAIN.blur_prob", "0"]


def picture(height, width, cell=16):
    y, x = np.mgrid[:height, :width]
    right, low = (x // cell) % 2, (y // cell) % 2
    image = np.stack([right * 255, low * 255, np.full_like(x, 255)], 2).astype(np.uint8)
    return image, (right + 2 * low).astype(np.uint8)


def augment_of(cfg) -> Augment:
    return Augment(cfg.data, cfg.train)


def read_off(image):
    return ((image[..., 0] > 128) + 2 * (image[..., 1] > 128)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(90, 120), (20, 25), (41, 150)])
def test_image_and_label_stay_aligned(tiny, shape):
    cfg = tiny.load(*OVERRIDES, "TRAIN.train_h", "57", "TRAIN.train_w", "49")
    augment = augment_of(cfg)
    image, label = picture(*shape)
    wrong = valid = 0
    for seed in range(40):
        crop, target = augment(image, label, np.random.default_rng(seed))
        assert crop.shape == (57, 49, 3) and target.shape == (57, 49) and crop.dtype == target.dtype == np.uint8
        inside = (target != VOID) & (crop[..., 2] == 255)  # blue is full inside, mixed at the image's rim
        wrong += (read_off(crop)[inside] != target[inside]).sum()
        valid += inside.sum()
    assert valid > 10_000
    assert wrong / valid < 0.01  # bilinear and nearest may differ by a rounding along the cells' borders


def test_outside_is_mean_and_void(tiny):
    cfg = tiny.load(*OVERRIDES, "TRAIN.rotate_prob", "0", "TRAIN.scale_min", "1.0", "TRAIN.scale_max", "1.0")
    image, label = np.full((11, 15, 3), 250, np.uint8), np.ones((11, 15), np.uint8)
    crop, target = augment_of(cfg)(image, label, np.random.default_rng(0))
    assert (target == 1).sum() == 11 * 15
    assert target[11:22, 9:24].min() == target[11:22, 9:24].max() == 1  # centred in 33x33
    assert (crop[target == VOID] == (124, 116, 104)).all()
    assert (crop[target == 1] == 250).all()


def test_no_change_at_scale_one(tiny):
    cfg = tiny.load(
        *OVERRIDES, *"TRAIN.rotate_prob 0 TRAIN.flip_prob 0 TRAIN.scale_min 1.0 TRAIN.scale_max 1.0".split()
    )
    rng = np.random.default_rng(3)
    image, label = rng.integers(0, 256, (33, 33, 3), np.uint8), rng.integers(0, 4, (33, 33), np.uint8)
    crop, target = augment_of(cfg)(image, label, rng)
    assert np.array_equal(crop, image) and np.array_equal(target, label)


def test_flip_mirrors(tiny):
    options = "TRAIN.rotate_prob 0 TRAIN.flip_prob 1 TRAIN.scale_min 1.0 TRAIN.scale_max 1.0".split()
    rng = np.random.default_rng(3)
    image, label = rng.integers(0, 256, (33, 33, 3), np.uint8), rng.integers(0, 4, (33, 33), np.uint8)
    crop, target = augment_of(tiny.load(*OVERRIDES, *options))(image, label, rng)
    assert np.array_equal(crop, image[:, ::-1]) and np.array_equal(target, label[:, ::-1])


def test_every_crop_position_is_reached(tiny):
    options = "TRAIN.rotate_prob 0 TRAIN.flip_prob 0 TRAIN.scale_min 1.0 TRAIN.scale_max 1.0".split()
    augment = augment_of(tiny.load(*OVERRIDES, *options))
    offsets = {tuple(-augment.matrix(35, 36, np.random.default_rng(i))[:, 2]) for i in range(300)}
    assert offsets == {(x, y) for x in range(4) for y in range(3)}


def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny):
    cfg = tiny.load()
    first, second = TrainData(cfg.data, cfg.train, seed=7), TrainData(cfg.data, cfg.train, seed=7)
    second[0, 1], second[4, 2]  # other samples drawn before change nothing
    assert np.array_equal(first[3, 5][0], second[3, 5][0])
    assert not np.array_equal(first[3, 5][0], first[4, 5][0])
    assert not np.array_equal(first[3, 5][0], TrainData(cfg.data, cfg.train, seed=8)[3, 5][0])


def sampler(tiny, seed, start=0):
    """Of 10 labelled images in batches of 5, for 3 epochs."""
    cfg = tiny.load("TRAIN.batch_size", "5", "TRAIN.epochs", "3")
    return list(ResumableBatchSampler(SimpleNamespace(labelled=10, unlabelled=0, seed=seed, train=cfg.train), start))


def test_sampler_visits_each_image_once_an_epoch_and_starts_anywhere(tiny):
    whole = sampler(tiny, 1)
    assert len(whole) == 6
    for epoch in range(3):
        keys = whole[2 * epoch] + whole[2 * epoch + 1]
        assert sorted(index for _, index in keys) == list(range(10)) and {e for e, _ in keys} == {epoch}
    assert sampler(tiny, 1, start=3) == whole[3:]
    assert sampler(tiny, 2) != whole


def test_unlabelled_images_come_in_a_row_of_their_own(tiny):
    cfg = tiny.load("TRAIN.batch_size", "4", "TRAIN.accumulate", "2", "TRAIN.epochs", "3")
    train = cfg.train.model_copy(update={"unlabelled_per_batch": 2})
    data = SimpleNamespace(labelled=10, unlabelled=3, seed=1, train=train)
    whole = list(ResumableBatchSampler(data))
    unlabelled = [key for batch in whole for key in batch if key[1] >= 10]
    assert [len(batch) for batch in whole] == [6] * 6
    assert all([index >= 10 for _, index in batch] == [False, False, True] * 2 for batch in whole)  # halves alike
    for row in range(4):  # 12 places are 4 permutations of the 3 images
        assert sorted(unlabelled[3 * row : 3 * row + 3]) == [(row, 10), (row, 11), (row, 12)]
    assert list(ResumableBatchSampler(data, 4)) == whole[4:]
    labelled = [[key for key in batch if key[1] < 10] for batch in whole]
    alone = ResumableBatchSampler(SimpleNamespace(labelled=10, unlabelled=0, seed=1, train=cfg.train))
    assert labelled == list(alone)  # the labelled ones come as they would alone
