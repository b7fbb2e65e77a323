"""Which settings a resumed run may have."""

import pytest
import torch

from util import checkpoint, distributed


def test_settings_that_are_retired_or_may_change_by_now_do_not_count(tiny, command, script):
    """As older versions stored them, nobody could take them back."""
    folder = tiny.out / "run"
    assert script("train_50_18.py", *command(folder, "TRAIN.save_freq", "2")).status == 0
    (folder / "train_epoch_3.pth").unlink()
    content = checkpoint.read(folder / "train_epoch_2.pth")
    content["settings"] |= {"TRAIN.skip_nonfinite": 0, "TRAIN.compile": False, "DISTILL.teacher_path": "x.pth"}
    torch.save(content, folder / "train_epoch_2.pth")
    assert script("train_50_18.py", *command(folder, "TRAIN.save_freq", "2")).status == 0


TAKEN_AWAY = {"DATA.label_map": "{0: 0, 1: 1, 2: 2, 3: 3, other: 255}", "DISTILL.schedules": "{kl: {shape: linear}}"}


@pytest.mark.parametrize("key", TAKEN_AWAY)
def test_a_setting_that_is_taken_away_has_changed(tiny, command, fails, script, key):
    folder = tiny.out / "run"
    assert script("train_50_18.py", *command(folder, key, TAKEN_AWAY[key])).status == 0
    (folder / "train_epoch_3.pth").unlink()
    line = fails("train_50_18.py", *command(folder))
    assert "was trained with other settings" in line and key in line


def test_a_teacher_in_tf32_leaves_the_losses_products_in_float32():
    """Convolutions have one switch for both networks, matrix products another; both are PyTorch's, for any device."""
    for own, teacher, expected in (("bf16", "tf32", (True, False)), ("tf32", None, (True, True)), ("fp32", None, ())):
        distributed.allow_tf32(own, teacher)
        found = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        assert found == (expected or (False, False))
