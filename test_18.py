"""Test the student alone, a PSPNet-ResNet18: class maps, metrics.json, a table."""

from util import run
from util.evaluate import testing


def main(cfg):
    testing.test(cfg)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet18.yaml")
