"""Distil with kl alone, and only where the teacher is right: where its class is the label's.

The kl of train_50_18.py, averaged over those positions of stride 8 (of one process, and of one part
where TRAIN.accumulate splits a batch). Arguments as train_50_18.py.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from model.distill.logits import kl  # noqa: E402
from model.loss import supervised_losses  # noqa: E402
from util import network, run  # noqa: E402
from util.config import Config  # noqa: E402
from util.data.batch import Batch  # noqa: E402
from util.train import engine  # noqa: E402
from util.train.teacher import Teacher  # noqa: E402


def where_right(s: Tensor, t: Tensor, batch: Batch, temperature: float) -> Tensor:
    """s, t: logits (N, C, h, w) at stride 8."""
    labels = batch.labels[1]
    right = labels.mask & (t.argmax(1) == labels.label)
    return kl(s, t, labels._replace(mask=right, count=right.sum().clamp(min=1)), temperature=temperature)


def distil(cfg: Config, divergence: Callable[[Tensor, Tensor, Batch, float], Tensor]) -> None:
    """Train as train_50_18.py does without aux_mse and hints; divergence: in the place of kl."""
    teacher = Teacher(cfg, network.load_teacher(cfg))

    def losses(student, batch):
        t, s = teacher(batch), student(batch.image)
        terms = supervised_losses(s, batch.labels[cfg.train.zoom_factor], cfg.train.class_weights)
        return s.logits, terms | {"kl": divergence(s.logits, t.logits, batch, cfg.distill.temperature)}

    weights = cfg.distill.weights.model_dump(exclude={"aux_mse"})
    engine.fit(cfg, network.build(cfg.train, cfg.data), losses, weights, teacher)


if __name__ == "__main__":
    run.main(lambda cfg: distil(cfg, where_right), "config/voc2012/voc2012_pspnet50_18.yaml")
