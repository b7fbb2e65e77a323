"""Distil the teacher, a frozen PSPNet-ResNet50, into the student, a PSPNet-ResNet18.

total = ce * CE(s, y) + kl * T^2 KL(t || s) + aux_mse * MSE(aux_s, aux_t) + aux_ce * CE(aux_s, y), weights from YAML,
and, for each of DISTILL.hints, weight * loss(layer of s, layer of t)
"""

from model.distill.classes import comparable
from model.distill.features import mse
from model.distill.logits import kl, standardise
from model.loss import supervised_losses
from util import network, run
from util.teachers import load
from util.train import engine
from util.train.hints import with_hints
from util.train.teacher import Teacher


def main(cfg):
    teacher_net = load.load(cfg)
    student, hints = with_hints(cfg.distill.hints, network.build(cfg.train, cfg.data), teacher_net)
    teacher = Teacher(cfg, teacher_net, hints.teacher_layers)
    prepare_logits = standardise if cfg.distill.standardise else lambda logits: logits

    def losses(student, batch):
        t, s = teacher(batch), student(batch.image)
        terms = supervised_losses(s, batch.labels[cfg.train.zoom_factor], cfg.train.class_weights)
        # As they are, unless the teacher has other classes: then log-probabilities of those that it knows
        logits, t_logits, valid = comparable(s.logits, t.logits, batch.valid[1], teacher_net.known)
        terms["kl"] = kl(prepare_logits(logits), prepare_logits(t_logits), valid, temperature=cfg.distill.temperature)
        if t.aux is not None:  # else aux_mse weighs 0, as load has checked
            terms["aux_mse"] = mse(s.aux, t.aux, batch.valid[1])
        return s.logits, terms | hints(s, t, batch)

    weights = cfg.distill.weights.model_dump(exclude=None if teacher_net.aux else {"aux_mse"})
    engine.fit(cfg, student, losses, weights | hints.weights, teacher)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50_18.yaml")
