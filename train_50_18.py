"""Distil the teacher, a frozen PSPNet-ResNet50, into the student, a PSPNet-ResNet18.

total = ce * CE(s, y) + kl * T^2 KL(t || s) + aux_mse * MSE(aux_s, aux_t) + aux_ce * CE(aux_s, y), weights from YAML
"""

import torch

from model import pspnet
from model.distill.features import mse
from model.distill.logits import kl
from model.loss import supervised
from util import engine, run


def main(cfg):
    dtype = run.precision(cfg.train.precision)
    teacher = pspnet.load_teacher(cfg, dtype, run.device())
    student = pspnet.build(cfg)

    def losses(student, batch):
        with torch.no_grad():
            t = teacher(batch.image.to(dtype))
        s = student(batch.image)
        labels, coarse = batch.labels(cfg.train.zoom_factor), batch.labels(1)
        terms = supervised(s, labels)
        terms["kl"] = kl(s.logits, t.logits, coarse, cfg.distill.temperature)
        if t.aux is not None:  # else load_teacher has seen to it that aux_mse weighs 0
            terms["aux_mse"] = mse(s.aux, t.aux, coarse)
        return s.logits, terms

    weights = cfg.distill.weights.model_dump(exclude=None if teacher.aux else {"aux_mse"})
    engine.fit(cfg, student, losses, weights)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50_18.yaml")
