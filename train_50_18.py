"""Distil the teacher, a frozen PSPNet-ResNet50, into the student, a PSPNet-ResNet18.

total = ce * CE(s, y) + kl * T^2 KL(t || s) + aux_mse * MSE(aux_s, aux_t) + aux_ce * CE(aux_s, y), weights from YAML,
and, for each of DISTILL.hints, weight * loss(layer of s, layer of t). Without DATA.train_list there are no labels y;
a teacher of features has neither outputs nor aux_t.
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
    labelled = bool(cfg.data.train_list)
    student, hints = with_hints(cfg.distill.hints, network.build(cfg.train, cfg.data), teacher_net, labelled)
    teacher = Teacher(cfg, teacher_net, hints.teacher_layers)

    def losses(student, batch):
        t, s = teacher(batch), student(batch.image)
        terms = {}
        if labelled:
            terms |= supervised_losses(s, batch.labels[cfg.train.zoom_factor], cfg.train.class_weights)
        if t.logits is not None:
            # As they are, unless the teacher has other classes: then log-probabilities of those that it knows
            logits, t_logits, valid = comparable(s.logits, t.logits, batch.valid[1], teacher_net.known)
            if cfg.distill.standardise:
                logits, t_logits = standardise(logits), standardise(t_logits)
            terms["kl"] = kl(logits, t_logits, valid, temperature=cfg.distill.temperature)
        if t.aux is not None:
            terms["aux_mse"] = mse(s.aux, t.aux, batch.valid[1])
        return s.logits, terms | hints(s, t, batch)

    needs = {"ce": labelled, "aux_ce": labelled, "kl": "logits" in teacher_net.channels(), "aux_mse": teacher_net.aux}
    weights = cfg.distill.weights.model_dump(include={term for term, there in needs.items() if there})  # others are 0
    engine.fit(cfg, student, losses, weights | hints.weights, teacher)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50_18.yaml")
