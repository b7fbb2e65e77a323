"""What every script needs around its experiment: arguments, errors, processes, device, precision, seeds."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable

from util import config, distributed
from util.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


@contextlib.contextmanager
def errors_in_one_line():
    """A UserError becomes one line on stderr and exit status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def parse_arguments(description: str, default_config: str, argv: list[str] | None = None) -> config.Config:
    parser = Parser(
        description=description,
        usage="%(prog)s [--config FILE] [--check] [SECTION.key VALUE ...]",
        epilog=f"example: python %(prog)s --config {default_config} TRAIN.epochs 2 TEST.scales '[0.75, 1.0]'",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default=default_config, help="YAML file (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="read everything, take a step, predict; write nothing")
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
                logging.disable(logging.INFO)
            if cfg.train.manual_seed is not None:
                distributed.seed_everything(cfg.train.manual_seed)
            experiment(cfg)
