"""Train the teacher, a PSPNet-ResNet50, by cross entropy on its final and auxiliary outputs."""

from model.loss import supervised_losses
from util import network, run
from util.train import engine


def main(cfg):
    teacher = network.build(cfg.train, cfg.data)

    def losses(teacher, batch):
        output = teacher(batch.image)
        return output.logits, supervised_losses(output, batch.labels[cfg.train.zoom_factor], cfg.train.class_weights)

    engine.fit(cfg, teacher, losses, {"ce": 1.0, "aux_ce": cfg.train.aux_weight})


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50.yaml")
