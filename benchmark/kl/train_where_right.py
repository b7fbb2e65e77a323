"""Distil with kl alone, and only where the teacher is right: where its class is the label's.

The kl of train_50_18.py, averaged over those positions of stride 8 (of one process, and of one part
where TRAIN.accumulate splits a batch). Arguments as train_50_18.py.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from model.distill.classes import comparable
from model.distill.logits import kl
from model.loss import supervised_losses
from util import network, run
from util.config import Config
from util.data.batch import Batch
from util.teachers import load
from util.train import engine
from util.train.teacher import Teacher


def where_right(s: Tensor, t: Tensor, batch: Batch, temperature: float) -> Tensor:
    """s, t: logits (N, C, h, w) at stride 8."""
    labels = batch.labels[1]
    right = labels.mask & (t.argmax(1) == labels.label)
    return kl(s, t, labels._replace(mask=right, count=right.sum().clamp(min=1)), temperature=temperature)


def distil(cfg: Config, divergence: Callable[[Tensor, Tensor, Batch, float], Tensor]) -> None:
    """Train as train_50_18.py does without aux_mse and hints; divergence: in the place of kl.

    Of a teacher of other classes, batch.labels[1] leaves out what `comparable` does.
    """
    net = load.load(cfg)
    teacher = Teacher(cfg, net)

    def losses(student, batch):
        t, s = teacher(batch), student(batch.image)
        terms = supervised_losses(s, batch.labels[cfg.train.zoom_factor], cfg.train.class_weights)
        logits, t_logits, labels = comparable(s.logits, t.logits, batch.labels[1], net.known)
        compared = dataclasses.replace(batch, labels=batch.labels | {1: labels})
        return s.logits, terms | {"kl": divergence(logits, t_logits, compared, cfg.distill.temperature)}

    weights = cfg.distill.weights.model_dump(exclude={"aux_mse"})
    engine.fit(cfg, network.build(cfg.train, cfg.data), losses, weights, teacher)


if __name__ == "__main__":
    run.main(lambda cfg: distil(cfg, where_right), "config/voc2012/voc2012_pspnet50_18.yaml")
