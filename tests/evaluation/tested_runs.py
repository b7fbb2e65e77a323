"""Three tested runs for the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, CONFIG, VOID, tiny_pspnet
from PIL import Image

from util import config


@pytest.fixture(scope="session")
def runs(dataset, tmp_path_factory) -> Path:
    """A folder of three tested runs: the truth with 2 columns wrong (teacher), 12 (student alone) and 6 (distilled)."""
    from util.evaluate import testing

    root = tmp_path_factory.mktemp("exp")
    (root / "tiny.yaml").write_text(CONFIG.format(root=dataset, out=root))
    labels = {path.stem: np.asarray(Image.open(path)) for path in dataset.glob("val*.png")}
    for name, layers, wrong in (("pspnet50", 50, 2), ("pspnet18", 18, 12), ("pspnet50_18", 18, 6)):
        result, model = root / name / "result", root / name / "model"
        (result / "gray").mkdir(parents=True)
        model.mkdir()
        for stem, label in labels.items():
            prediction = np.where(label == VOID, 0, label)
            prediction[:, :wrong] = (prediction[:, :wrong] + 1) % CLASSES
            Image.fromarray(prediction).save(result / "gray" / f"{stem}.png")
        torch.save({"state_dict": tiny_pspnet(layers).state_dict()}, model / "train_epoch_2.pth")
        lines = [{"epoch": e, "loss": wrong / e, "ce": 1 / e, "train_mIoU": 0.1 * e} for e in (1, 2)]
        (model / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        keys = f"TEST.has_prediction True TEST.save_folder {result} TRAIN.layers {layers}"
        keys += f" TEST.model_path {model}/train_epoch_2.pth" + " DISTILL.teacher_path x" * (name == "pspnet50_18")
        testing.test(config.load(root / "tiny.yaml", keys.split()))
    return root
