"""Distil the teacher, a frozen PSPNet-ResNet50, into the student, a PSPNet-ResNet18.

total = ce * CE(s, y) + kl * T^2 KL(t || s) + aux_mse * MSE(aux_s, aux_t) + aux_ce * CE(aux_s, y), weights from YAML,
and, for each of DISTILL.hints, weight * loss(layer of s, layer of t)
"""

from model.distill.features import mse
from model.distill.logits import kl, standardise
from model.loss import supervised_losses
from util import network, run
from util.train import engine, teacher
from util.train.hints import Hints


def main(cfg):
    net_t = network.load_teacher(cfg)
    hints = Hints(cfg, network.build(cfg), net_t)
    teach = teacher.Teacher(cfg, net_t, hints.layers)
    scores = standardise if cfg.distill.standardise else lambda logits: logits

    def losses(student, batch):
        t, s = teach(batch), student(batch.image)
        valid = batch.valid(1)
        terms = supervised_losses(s, batch.labels(cfg.train.zoom_factor))
        terms["kl"] = kl(scores(s.logits), scores(t.logits), valid, temperature=cfg.distill.temperature)
        if t.aux is not None:  # else load_teacher has seen to it that aux_mse weighs 0
            terms["aux_mse"] = mse(s.aux, t.aux, valid)
        return s.logits, terms | hints(s, t, batch)

    weights = cfg.distill.weights.model_dump(exclude=None if net_t.aux else {"aux_mse"})
    engine.fit(cfg, hints.student, losses, weights | hints.weights, teach)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50_18.yaml")
