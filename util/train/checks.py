"""What is wrong with a run before its first step: the batch's size, the labels against the config, shared images."""

import logging
from collections.abc import Sequence
from pathlib import Path

from util import distributed
from util.config import Config
from util.data import lists
from util.data.label_map import check_labels, warn_of_sides
from util.errors import UserError
from util.keys import Train

log = logging.getLogger("checks")


def check_batch(train: Train) -> None:
    processes = distributed.world_size()
    images, rest = divmod(train.batch_size, processes * train.accumulate)
    unlabelled, rest_of_unlabelled = divmod(train.unlabelled_per_batch, processes * train.accumulate)
    for key, remainder in (("batch_size", rest), ("unlabelled_per_batch", rest_of_unlabelled)):
        if remainder:
            raise UserError(
                f"TRAIN.{key} {getattr(train, key)} cannot be shared by {processes} processes and TRAIN.accumulate "
                f"{train.accumulate}; make it a multiple of their product"
            )
    synced = train.sync_bn and processes > 1 and distributed.device().type == "cuda"
    if images + unlabelled == 1 and not synced:  # the pyramid's 1x1 bin then has one value a channel, and no variance
        raise UserError(
            f"TRAIN.batch_size {train.batch_size} leaves one image for each forward pass; BatchNorm needs two: raise it"
            + (", or lower TRAIN.accumulate or the number of processes" if train.batch_size > 1 else "")
        )


def check_classes(cfg: Config, labels: list[Path]) -> None:
    """Hold names, colours and a few labels against the config. Raises UserError as check_labels does."""
    names, colors = lists.read_names(cfg.data), lists.read_colors(cfg.data)
    if cfg.data.label_map is None:
        check_labels(labels, names, colors, cfg.train.ignore_label)
    if cfg.train.flip_prob:
        warn_of_sides(names, cfg.data, "TRAIN.flip_prob to 0")


def warn_of_shared_images(train: Sequence[lists.Pair], val: Sequence[lists.Pair]) -> None:
    """Warn of images that are trained on and scored."""
    if shared := {pair.image for pair in train} & {pair.image for pair in val}:
        log.warning(
            f"warning: {len(shared)} of the {len(val)} images of DATA.val_list are trained on, too, such as "
            f"{min(shared)}: their scores say nothing about other images"
        )
