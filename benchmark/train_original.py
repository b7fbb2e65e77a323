"""Distil with the losses of asaander719/PSPNet-knowledge-distillation (model/kdnet.py there).

    total = 0.25 * CE(s, y) + 0.75 * 19 T^2 * mean over pixels and classes of p_t log(p_t / p_s)
          + SmoothL1(aux_s, teacher's final output),   T = 1.9

Everything at the image's full size, void included in all but CE; no cross entropy of the auxiliary
output. Network, data, augmentation and schedule are this project's, so that only the losses differ.
Arguments as train_50_18.py.
"""

import sys
from pathlib import Path

import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.loss import cross_entropy, to_float32
from util import network, run
from util.train import engine
from util.train.teacher import Teacher

TEMPERATURE, ALPHA, CITYSCAPES_CLASSES = 1.9, 0.25, 19


def main(cfg):
    teacher = Teacher(cfg, network.load_teacher(cfg))

    def losses(student, batch):
        def full(logits):
            return F.interpolate(to_float32(logits), batch.image.shape[2:], mode="bilinear", align_corners=True)

        t, output = full(teacher(batch).logits), student(batch.image)
        s = full(output.logits)
        log_q, log_p = F.log_softmax(s / TEMPERATURE, 1), F.log_softmax(t / TEMPERATURE, 1)
        divergence = (log_p.exp() * (log_p - log_q)).mean()
        return output.logits, {
            "ce": cross_entropy(s, batch.labels[cfg.train.zoom_factor]),
            "kl": divergence * TEMPERATURE**2 * CITYSCAPES_CLASSES,
            "aux_smooth_l1": F.smooth_l1_loss(full(output.aux), t),
        }

    weights = {"ce": ALPHA, "kl": 1 - ALPHA, "aux_smooth_l1": 1.0}
    engine.fit(cfg, network.build(cfg.train, cfg.data), losses, weights, teacher)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50_18.yaml")
