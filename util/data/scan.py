"""Decode whole lists of images and labels, as --check does, and count the labels' classes."""

import numpy as np
from torch.utils.data import Dataset

from util import distributed
from util.config import Config, Data
from util.data.decode import read_image
from util.data.lists import Pair, read_names, read_pair
from util.data.loader import build_loader, progress
from util.errors import UserError

SHOWN = 20  # faults of a list that are printed


class LabelCounts(Dataset):
    """Decodes each pair: the number of pixels of each label value, (256,), or the fault as text."""

    def __init__(self, pairs: list[Pair], data: Data, ignore_label: int):
        self.pairs, self.data, self.ignore_label = pairs, data, ignore_label

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> np.ndarray | str:
        pair = self.pairs[index]
        try:
            if pair.label is None:
                read_image(pair.image, self.data.image_max)
                return np.zeros(256, np.int64)
            return np.bincount(read_pair(pair, self.data, self.ignore_label)[1].ravel(), minlength=256)
        except UserError as error:
            return str(error)


def scan_images(pairs: list[Pair], cfg: Config, source: str) -> None:
    """Decode the list `source` whole, in TRAIN.workers processes; print the classes' shares.

    Raises UserError with the number of unusable pairs and the first of them, once all are read.
    """
    if not distributed.is_main():
        return
    names, faults, pixels, images = read_names(cfg.data), [], np.zeros(256, np.int64), np.zeros(256, np.int64)
    counts = LabelCounts(pairs, cfg.data, cfg.train.ignore_label)
    loader = build_loader(counts, min(cfg.train.workers, len(pairs)), batch_size=None)
    for item in progress(loader, f"read {source}"):
        if isinstance(item, UserError):
            raise item
        if isinstance(item, str):
            faults.append(item)
        else:
            pixels += np.asarray(item)
            images += np.asarray(item) > 0
    for fault in faults[:SHOWN] if len(faults) > 1 else []:  # the error names the first
        print(f"  {fault}")
    if faults:
        raise UserError(f"{len(faults)} of {len(pairs)} entries of {source} cannot be used; the first: {faults[0]}")
    print(f"{source}: {len(pairs)} images are whole", flush=True)
    if not pixels.any():
        return
    rows = [*enumerate(names), (cfg.train.ignore_label, "void")]
    width = max(len(name) for _, name in rows)
    for value, name in rows:
        share = 100 * pixels[value] / pixels.sum()
        print(f"  {name:{width}} {pixels[value]:15,} pixels {share:6.2f} %, in {images[value]:,} images")
    if absent := [name for value, name in enumerate(names) if not pixels[value]]:
        print(f"warning: in no label of {source}: {', '.join(absent)}", flush=True)
    elif source == cfg.data.train_list:
        of_class = pixels[: len(names)]
        rarity = 1 / np.sqrt(of_class)  # over their mean over all pixels, so that the loss keeps its size
        rarity *= of_class.sum() / (rarity * of_class).sum()
        print(f"  inverse square roots of these shares: TRAIN.class_weights {rarity.round(2).tolist()}")
