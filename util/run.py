"""What every script needs around its experiment: arguments, errors in one line, processes, seeds."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable

from util import config, distributed, seeds
from util.errors import UserError, out_of_memory

KEYS = {
    "train": """
  DATA.data_root, DATA.train_list, DATA.val_list   images and labels, `image label` a line
  DATA.label_map                                   what the label files hold -> classes
  TRAIN.batch_size, TRAIN.base_lr, TRAIN.epochs    schedule; base_lr goes with batch_size
  TRAIN.train_h, TRAIN.train_w, TRAIN.accumulate   what has to fit into memory
  TRAIN.pretrained, TRAIN.weight, TRAIN.new_head   where the weights come from
  TRAIN.save_path                                  a folder for each run
  DISTILL.teacher_config, DISTILL.teacher_path     the teacher (train_50_18.py)
  DISTILL.weights.kl, DISTILL.hints                distillation terms (train_50_18.py)""",
    "test": """
  TEST.model_path      checkpoint; else train_epoch_{TRAIN.epochs}.pth in TRAIN.save_path
  TEST.test_list       images and labels, `image label` a line; with TEST.split test images alone
  TEST.base_size       longer side at scale 1, in pixels
  TEST.mode, TEST.test_h, TEST.test_w   windows, or the whole image
  TEST.scales, TEST.flip                average over scales and the mirrored image
  TEST.save_folder     class maps and metrics.json
  DATA.label_map       what the label files hold -> classes""",
}
EXAMPLE = {
    "train": "TRAIN.epochs 2 TRAIN.workers 1",
    "test": "TEST.model_path exp/voc2012/pspnet18/model/best.pth TEST.scales '[0.75, 1.0]'",
}
EPILOG = """
keys that are changed most often:
{keys}

All keys of DATA, TRAIN and TEST are explained in config/voc2012/voc2012_pspnet18.yaml, those of
DISTILL in voc2012_pspnet50_18.yaml beside it.

examples:
  python {script} {example}
  python {script} --config {config} --check
  torchrun --nproc_per_node 4 {script}
"""


IMPLAUSIBLE_STD = 3.0  # of pixel values from 0 to 255


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


@contextlib.contextmanager
def errors_in_one_line():
    """A UserError, and memory that runs out, becomes one line on stderr and exit status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text, nor the terminal Unicode's
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception as error:
        if out_of_memory(error) and not isinstance(error, UserError):
            reason = (str(error).strip().splitlines() or ["of the host"])[0]
            error = UserError(
                f"out of memory ({reason:.200}); in training raise TRAIN.accumulate, or lower TRAIN.batch_size or "
                "TRAIN.train_h and TRAIN.train_w; in testing lower TRAIN.batch_size_val; on the host TRAIN.workers"
            )
        if not isinstance(error, UserError):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def parse_arguments(description: str, default_config: str, argv: list[str] | None = None) -> config.Config:
    parser = Parser(
        description=description,
        usage="%(prog)s [--config FILE] [--check] [SECTION.key VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kind = "test" if parser.prog.startswith("test") else "train"
    words = {"keys": KEYS[kind].lstrip("\n"), "example": EXAMPLE[kind], "script": parser.prog, "config": default_config}
    parser.epilog = EPILOG.format(**words)
    parser.add_argument("--config", default=default_config, help="YAML file (default: %(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="read everything, try a few steps or an image; write nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key VALUE", help="replace a value of the YAML file")
    arguments = parser.parse_intermixed_args(argv)
    cfg = config.load(arguments.config, arguments.overrides)
    return cfg.model_copy(update={"check": arguments.check})


def main(experiment: Callable[[config.Config], None], default_config: str) -> None:
    """Run a script's `experiment` on its config; a UserError becomes one line on stderr and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    with errors_in_one_line():
        cfg = parse_arguments(sys.modules["__main__"].__doc__, default_config)
        with distributed.processes():
            if not distributed.is_main():
                logging.disable(logging.WARNING)
            if cfg.train.manual_seed is not None:
                seeds.seed_torch(seeds.Stream.INIT, cfg.train.manual_seed)
            if max(cfg.data.std) < IMPLAUSIBLE_STD:
                logging.warning(f"warning: DATA.std {cfg.data.std} is for pixels of 0 to 1; they are read as 0 to 255")
            experiment(cfg)
