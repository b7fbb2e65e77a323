"""--check: read all that a run would read, take steps in memory, say what the run would cost; write nothing."""

import math
import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from model import pspnet
from model.distill.adapters import StudentWithAdapters
from util import distributed, files, network
from util.config import Config
from util.data.decode import read_image
from util.data.lists import Pair, read_colors, read_names, read_pair, scored_list
from util.data.loader import ResumableBatchSampler, TrainData, build_loader, train_loader
from util.errors import UserError
from util.evaluate import predict
from util.train.resume import resume
from util.train.schedule import Weights
from util.train.step import Losses, Stepper, optimizer
from util.train.teacher import Teacher

SHOWN = 20  # faults of a list that are printed
STEPS = 4  # that are timed: the same for all processes, which wait for each other in them


class _Decoded(Dataset):
    """Decodes each pair whole and gives the number of pixels of each label value, (256,), or the fault as text."""

    def __init__(self, pairs: list[Pair], cfg: Config):
        self.pairs, self.cfg = pairs, cfg

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> np.ndarray | str:
        pair = self.pairs[index]
        try:
            if pair.label is None:
                read_image(pair.image)
                return np.zeros(256, np.int64)
            return np.bincount(read_pair(pair, self.cfg)[1].ravel(), minlength=256)
        except UserError as error:
            return str(error)


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)


def _pictures(pairs: list[Pair], cfg: Config, what: str) -> None:
    """Decode every image and label, in TRAIN.workers processes; print the classes' shares.

    Raises UserError with the number of unusable pairs and the first of them, once all are read.
    """
    if not distributed.is_main():
        return
    names, faults, pixels, seen = read_names(cfg.data), [], np.zeros(256, np.int64), np.zeros(256, np.int64)
    found = build_loader(_Decoded(pairs, cfg), min(cfg.train.workers, len(pairs)), batch_size=None)
    for item in tqdm(found, f"read {what}", leave=False, disable=None):
        if isinstance(item, str):
            faults.append(item)
        else:
            pixels += item.numpy()
            seen += item.numpy() > 0
    for fault in faults[:SHOWN]:
        print(f"  {fault}")
    if faults:
        raise UserError(f"{len(faults)} of {len(pairs)} entries of {what} cannot be used; the first: {faults[0]}")
    _say(f"{what}: {len(pairs)} images are whole")
    if not pixels.any():
        return
    rows = [*enumerate(names), (cfg.train.ignore_label, "void")]
    width = max(len(name) for _, name in rows)
    for value, name in rows:
        share = 100 * pixels[value] / pixels.sum()
        print(f"  {name:{width}} {pixels[value]:15,} pixels {share:6.2f} %, in {seen[value]:,} images")
    if absent := [name for value, name in enumerate(names) if not pixels[value]]:
        print(f"warning: in no label of {what}: {', '.join(absent)}")


def training(
    cfg: Config,
    model: pspnet.PSPNet | StudentWithAdapters,
    losses: Losses,
    weights: Weights,
    teacher: Teacher | None = None,
) -> None:
    """What engine.fit would do with the same arguments. Raises UserError for whatever would stop it.

    Only torch's download cache may change, by ImageNet weights.
    """
    train, device, folder = cfg.train, distributed.device(), Path(cfg.train.save_path)
    read_colors(cfg.data)
    val = scored_list(cfg.data.val_list, "DATA.val_list", cfg.data)
    model.to(device, memory_format=torch.channels_last)
    descent = optimizer(cfg, model)
    progress = resume(cfg, folder, model, descent)
    data = TrainData(cfg, progress.seed)
    sampler = ResumableBatchSampler(data, train, progress.step)
    _pictures(data.pairs[: data.labelled], cfg, cfg.data.train_list)
    if data.unlabelled:
        _pictures(data.pairs[data.labelled :], cfg, cfg.data.unlabelled_list)
    _pictures(val, cfg, cfg.data.val_list)
    if teacher:
        teacher.report(cfg)
    left = sampler.steps - progress.step
    if not left:
        _say(f"{folder} holds a finished run: it would do nothing")
        return
    stepper = Stepper(cfg, model, descent, losses, weights, progress.seed, sampler.per_epoch, progress.skipped)
    loading, raw = _timed(lambda: next(iter(train_loader(data, sampler, 0))))
    times: list[float] = []
    for i in range(STEPS):  # an epoch's first one also measures gradient shares
        step = min(progress.step + i, sampler.steps - 1)
        spent, means = _timed(lambda step=step: (stepper.step(raw, step), stepper.means("the checked step"))[1])
        times.append(spent)
    seconds = min(times[1:])  # the first one also makes room
    terms = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    _say(
        f"a step of {train.batch_size} crops of {train.train_h}x{train.train_w} on {device.type} in {stepper.dtype}: "
        f"{seconds:.2f} s, {terms}\n{_memory()}"
    )
    each = seconds + loading if train.workers == 0 else max(seconds, loading / train.workers)
    if each > seconds:
        _say(f"images are made in {loading:.2f} s a batch by one process: TRAIN.workers {train.workers} hold it up")
    total, epochs = left * each, math.ceil(left / sampler.per_epoch)
    if train.evaluate:
        net = model.net if isinstance(model, StudentWithAdapters) else model
        few = val[: 2 * distributed.world_size()]
        scoring = _timed(lambda: predict.validate(net, few, cfg))[0] / len(few) * len(val)
        _say(f"{len(val)} images would be validated after each epoch, in about {_duration(scoring)}")
        total += epochs * scoring
    _say(f"{left} steps in {epochs} epochs would take about {_duration(total)}")
    if teacher and teacher.cache:
        _say(f"{teacher.cache.plan(sampler.crops)} in {teacher.cache.folder}")
    _say(f"it would {'go on after step ' + str(progress.step) if progress.step else 'start anew'} in {folder}")
    size = sum(t.nbytes for t in (*_tensors(model.state_dict().values()), *_tensors(_momenta(descent))))
    _room(folder, size * (train.keep + 1 + 2 * train.evaluate), f"checkpoints of {_bytes(size)}", "TRAIN.save_path")


def testing(cfg: Config, pairs: list[Pair], maps: list[str]) -> None:
    """What testing.test would do. Raises UserError for whatever would stop it."""
    t = cfg.test
    read_names(cfg.data)
    read_colors(cfg.data)
    _pictures(pairs, cfg, t.test_list)
    if t.has_prediction:
        missing = [name for name in maps if not Path(t.save_folder, "gray", f"{name}.png").is_file()]
        if missing:
            raise UserError(f"{t.save_folder}/gray lacks {len(missing)} of {len(maps)} maps, such as {missing[0]}.png")
        _say(f"it would score the {len(maps)} maps in {t.save_folder}/gray")
        return
    dtype, device = distributed.precision(t.precision), distributed.device()
    net = network.load(t.model_path, cfg.train.layers, cfg.data.classes, aux=False).to(device).freeze(dtype)
    predicted = predict.predictions(net, pairs, range(min(2, len(pairs))), cfg, predict.testing_protocol(cfg), dtype)
    times = [_timed(lambda: next(predicted))[0] for _ in range(min(2, len(pairs)))]
    _say(f"an image on {device.type} in {dtype}: {times[-1]:.2f} s\n{_memory()}")
    _say(f"{len(pairs)} images would take about {_duration(times[-1] * len(pairs) / distributed.world_size())}")
    pixels = sum(path.stat().st_size for path in {pair.image for pair in pairs})
    _room(Path(t.save_folder), pixels, f"maps of {len(pairs)} images", "TEST.save_folder")


def _timed(work: Callable):
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _momenta(descent: torch.optim.Optimizer) -> Iterable:
    return (value for state in descent.state.values() for value in state.values())


def _tensors(values: Iterable) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _memory() -> str:
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(distributed.device()).total_memory
        return f"GPU memory: {_bytes(torch.cuda.max_memory_reserved())} at most so far, of {_bytes(total)}"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"memory: {_bytes(used)} at most so far in this process, of {_bytes(total)}"


def _room(folder: Path, size: int, what: str, key: str) -> None:
    """Raise UserError when `folder` could not be made and written, or the disk has less than `size` bytes left."""
    there = files.nearest(folder)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"{there} cannot be written, and {folder} ({key}) lies in it")
    free = files.free(folder)
    if size > free:
        raise UserError(f"{folder} ({key}) has {_bytes(free)} left; {what} need up to {_bytes(size)}")
    _say(f"it would write {what}, up to {_bytes(size)} at once, to {folder}, where {_bytes(free)} are free")
    _say("nothing was written")


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    for limit, unit, size in ((120, "seconds", 1), (7200, "minutes", 60), (172800, "hours", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
