"""Test the teacher, a PSPNet-ResNet50: class maps, metrics.json, a table."""

from util import run
from util.evaluate import testing


def main(cfg):
    testing.test(cfg)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50.yaml")
