"""Test the distilled student, a PSPNet-ResNet18, and set it beside the teacher and the student alone."""

from util import run
from util.evaluate import comparison, testing


def main(cfg):
    testing.test(cfg)
    comparison.compare(cfg)


if __name__ == "__main__":
    run.main(main, "config/voc2012/voc2012_pspnet50_18.yaml")
