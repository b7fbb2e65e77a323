"""Train the teacher, a PSPNet-ResNet50, by cross entropy on its final and auxiliary outputs."""

from model import pspnet
from model.loss import supervised
from util import engine, run


def main(cfg):
    teacher = pspnet.build(cfg)

    def losses(network, batch):
        output = network(batch.image)
        return output.logits, supervised(output, batch.labels(cfg.train.zoom_factor))

    engine.fit(cfg, teacher, losses, {"ce": 1.0, "aux_ce": cfg.train.aux_weight})


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50.yaml")
