"""What would go wrong in silence is said: mirrored sides, the wrong network, labels read as void."""

from PIL import Image
from test_advice import save

from model.pspnet import PSPNet


def test_sides_are_warned_of_in_testing(tiny, script, caplog):
    save(tiny.out / "model" / "train_epoch_1.pth")
    (tiny.out / "names.txt").write_text("sky\nleft arm\nright_arm\ncar\n")
    run = ["--config", tiny.path, "DATA.names_path", tiny.out / "names.txt"]
    assert script("test_18.py", *run).status == 0
    assert "wrong side of left arm, right_arm" in caplog.text and "TEST.flip to False" in caplog.text
    for remedy in (["TEST.flip", "False"], ["DATA.flip_pairs", "[[1, 2]]"]):
        caplog.clear()
        assert script("test_18.py", *run, *remedy).status == 0 and "wrong side" not in caplog.text


def test_a_val_list_of_training_images_is_warned_of(tiny, script, caplog):
    run = ["train_18.py", "--config", tiny.path, "DATA.val_list"]
    assert script(*run, tiny.root / "val.txt").status == 0 and "trained on" not in caplog.text
    assert script(*run, tiny.root / "train.txt", "TRAIN.save_path", tiny.out / "other").status == 0
    assert "warning: 8 of the 8 images of DATA.val_list are trained on, too, such as" in caplog.text


def test_a_run_and_a_test_name_their_network(tiny, script, caplog):
    """The student's YAML given to a teacher's script is seen at once."""
    with caplog.at_level("INFO"):
        assert script("train_50.py", "--config", tiny.path).status == 0
    assert "PSPNet-18, 8 images" in caplog.text
    assert "\nPSPNet-18, windows of 33x33" in script("test_50.py", "--config", tiny.path).out
    with caplog.at_level("INFO"):
        assert script("train_50.py", "--config", tiny.path).status == 0
    assert "holds a finished run: nothing was left to do" in caplog.text


def test_masks_of_0_and_255_are_not_scored_as_void(tiny, fails, script):
    """As in training: without the label_map every pixel of the class would be left out of the score."""
    save(tiny.out / "model" / "train_epoch_1.pth", state_dict=PSPNet(18, 2).state_dict())
    (tiny.out / "names.txt").write_text("rest\nroad\n")
    for i in range(3):
        Image.open(tiny.root / f"val{i}.png").point(lambda value: 255 * (value in (1, 2))).save(tiny.out / f"{i}.png")
    (tiny.out / "list.txt").write_text("".join(f"val{i}.jpg {tiny.out}/{i}.png\n" for i in range(3)))
    run = ["--config", tiny.path, "TEST.test_list", tiny.out / "list.txt", "DATA.classes", "2"]
    run += ["DATA.names_path", tiny.out / "names.txt"]
    assert "DATA.label_map" in fails("test_18.py", *run)
    assert script("test_18.py", *run, "DATA.label_map", "{0: 0, 255: 1}").status == 0
