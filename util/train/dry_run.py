"""--check of a training script: read all that a run would read, take steps in memory, write nothing."""

import shutil
import time
from pathlib import Path

import torch

from util import distributed, files
from util.data.lists import read_colors
from util.data.loader import SHM, shm_too_small, train_loader
from util.data.scan import scan_images
from util.errors import UserError
from util.train.teacher_cache import TeacherCache

STEPS = 3  # a fixed number, since steps are collective; the first one warms up


def training(run) -> None:
    """Check what engine.fit would do with `run`, an engine.Run. Raises UserError for anything that would stop it.

    Only torch's download cache may change, by ImageNet weights.
    """
    cfg, train, progress, stepper = run.cfg, run.cfg.train, run.progress, run.stepper
    read_colors(cfg.data)
    files.check_writable(Path(train.save_path), "TRAIN.save_path")
    if run.data.labelled:
        scan_images(run.data.pairs[: run.data.labelled], cfg, cfg.data.train_list)
    if run.data.unlabelled:
        scan_images(run.data.pairs[run.data.labelled :], cfg, cfg.data.unlabelled_list)
    if run.val:
        scan_images(run.val, cfg, cfg.data.val_list)
    if run.teacher:
        run.teacher.check(cfg, run.val)
    if not len(run.sampler):
        _print(f"{train.save_path} holds a finished run: it would do nothing")
        return
    raw = next(iter(train_loader(run.data, run.sampler, 0)))
    in_flight = 2 * train.workers * sum(x.nbytes for x in raw[:2]) if isinstance(raw, tuple) else 0
    if in_flight and Path(SHM).is_dir() and shutil.disk_usage(SHM).free < in_flight:
        raise UserError(f"{in_flight / 1e6:.0f} MB of batches would be on their way at once: {shm_too_small()}")
    stepper.model.train()
    for i in range(STEPS):
        start = time.perf_counter()
        stepper.step(run.to_device(raw), progress.step, dropout_seed=i)
        means = stepper.metrics.means("--check")  # waits for the device
        seconds = time.perf_counter() - start
    terms = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    size = f"{train.images_per_step} crops of {train.train_h}x{train.train_w}"
    _print(f"a step of {size} on {stepper.device.type} in {stepper.dtype}: {seconds:.2f} s, {terms}")
    if torch.cuda.is_available():
        _print(f"GPU memory: {torch.cuda.max_memory_reserved() / 1e9:.1f} GB at most so far")
    cache: TeacherCache | None = run.teacher and run.teacher.cache
    if cache:
        _print(f"{cache.plan(run.sampler.crops)} in {cache.folder}")
    start = f"resume after step {progress.step}" if progress.step else "start anew"
    _print(f"it would {start} in {train.save_path}; {len(run.sampler)} steps are left; nothing was written")


def _print(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)
