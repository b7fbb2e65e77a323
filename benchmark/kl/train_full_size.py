"""Distil with kl alone, of logits enlarged to the labels' size instead of at stride 8.

Arguments as train_50_18.py.
"""

import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmark.kl.train_where_right import distil
from model.distill.logits import kl
from model.loss import to_float32
from util import run
from util.config import Config
from util.data.batch import Batch
from util.errors import UserError

FULL = 8  # zoom factor of the labels' own size


def full_size(s: Tensor, t: Tensor, batch: Batch, temperature: float) -> Tensor:
    """s, t: logits (N, C, h, w) at stride 8."""
    size = batch.image.shape[2:]
    s, t = (F.interpolate(to_float32(x), size, mode="bilinear", align_corners=True) for x in (s, t))
    return kl(s, t, batch.valid[FULL], temperature=temperature)


def main(cfg: Config) -> None:
    if cfg.train.zoom_factor != FULL or (cfg.distill and cfg.distill.teacher_classes):
        raise UserError("this needs TRAIN.zoom_factor 8 and a teacher of the same classes (no DISTILL.teacher_classes)")
    distil(cfg, full_size)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50_18.yaml")
