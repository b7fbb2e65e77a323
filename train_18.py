"""Train the student alone, a PSPNet-ResNet18, by cross entropy on its final and auxiliary outputs."""

from model.loss import supervised_losses
from util import network, run
from util.train import engine


def main(cfg):
    student = network.build(cfg.train, cfg.data)

    def losses(student, batch):
        output = student(batch.image)
        return output.logits, supervised_losses(output, batch.labels[cfg.train.zoom_factor], cfg.train.class_weights)

    engine.fit(cfg, student, losses, {"ce": 1.0, "aux_ce": cfg.train.aux_weight})


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet18.yaml")
