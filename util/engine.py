"""fit(): the one training loop. What is learned comes from the script's `losses`; everything else is here."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from model.pspnet import PSPNet
from util import evaluate, run
from util.config import Config
from util.dataset import StepSampler, TrainData, read_list, train_loader
from util.errors import UserError
from util.metric import Scores
from util.record import Recorder
from util.resume import Interrupt, Progress, lock, named_worker_death, resume
from util.step import Losses, Stepper, optimizer

MEETING = 10  # steps between two times that several processes ask each other whether one was told to stop


def fit(cfg: Config, model: PSPNet, losses: Losses, weights: Mapping[str, float]) -> None:
    """Train `model` for TRAIN.epochs, writing checkpoints, metrics.jsonl and TensorBoard files to TRAIN.save_path.

    losses(model, batch) -> (logits at stride 8, {name: scalar term}); the total is the sum of weights[name] * term.
    Each term is logged by its name, as it is, without its weight. Goes on from the newest checkpoint if there is one
    (TRAIN.resume). On SIGTERM, SIGINT or SIGUSR1 it finishes the step, saves, and exits with status 75. Raises
    UserError when terms and weights do not match, and when a term is no longer finite.
    """
    train, device = cfg.train, run.device()
    _check_batch(cfg)
    folder = Path(train.save_path)
    with lock(folder), named_worker_death(), Interrupt() as interrupt:
        model.to(device, memory_format=torch.channels_last)
        descent = optimizer(cfg, model)
        progress = resume(cfg, folder, model, descent)
        data = TrainData(cfg, progress.seed)
        sampler = StepSampler(len(data), train.batch_size, train.epochs, progress.seed, progress.step)
        if sampler.per_epoch == 0:
            raise UserError(
                f"{cfg.data.train_list} has {len(data)} images, fewer than TRAIN.batch_size {train.batch_size}"
            )
        val = read_list(cfg.data.val_list, "DATA.val_list", cfg.data.data_root)
        done = progress.step // sampler.per_epoch
        recorder = Recorder(cfg, folder, done, val)
        stepper = Stepper(cfg, model, descent, losses, weights, progress.seed, sampler.steps)
        recorder.say(
            f"training on {device.type} in {run.precision(train.precision)}, {len(data)} images, seed {progress.seed}, "
            f"{done} of {train.epochs} epochs done, writing to {folder}"
        )
        batches = iter(train_loader(data, sampler, train.workers))
        for epoch in range(done + 1, train.epochs + 1):
            line = _train_epoch(cfg, stepper, batches, epoch, sampler.per_epoch, recorder, progress, interrupt)
            _share_buffers(model)
            if train.evaluate:
                line |= _scores("val", evaluate.validate(model, val, cfg))
            recorder.epoch(line, model)
            improved = line.get("val_mIoU", -1.0) > progress.best
            progress.best = max(progress.best, line.get("val_mIoU", -1.0))
            if improved:
                progress.save("best.pth")
            if epoch % train.save_freq == 0 or epoch == train.epochs:
                progress.save(f"train_epoch_{epoch}.pth")
        recorder.close()


def _train_epoch(
    cfg: Config,
    stepper: Stepper,
    batches: Iterator,
    epoch: int,
    steps: int,
    recorder: Recorder,
    progress: Progress,
    interrupt: Interrupt,
) -> dict[str, float]:
    """The steps that an epoch still lacks -> its line of metrics.jsonl, without the scores on val."""
    train, title, first = cfg.train, f"epoch {epoch}/{cfg.train.epochs}", progress.step % steps + 1
    stepper.begin_epoch()
    if progress.partial:
        stepper.load_state(progress.partial)
        progress.partial = None
    start = time.perf_counter()
    for i in tqdm(range(first, steps + 1), title, steps, leave=False, disable=recorder.no_bar, initial=first - 1):
        stepper.step(next(batches), progress.step)
        progress.step += 1
        if i % train.print_freq == 0 or i == steps:
            means = stepper.means(f"step {i} of epoch {epoch}")
            rate = train.batch_size * (i - first + 1) / (time.perf_counter() - start)
            recorder.steps(progress.step, means, stepper.lr, rate, f"{title}, step {i}")
        if i < steps and interrupt.agreed(meeting=i == 1 or i % MEETING == 0):
            stepper.means(f"step {i} of epoch {epoch}")  # nothing that is not finite may be saved
            progress.partial = stepper.state()
            progress.save("interrupted.pth")
            recorder.close()
            interrupt.leave(f"stopped after step {i} of {title}; the same command goes on from there")
    return {"epoch": epoch, "lr": stepper.lr, **means, **_scores("train", evaluate.add_up(stepper.matrix))}


def _check_batch(cfg: Config) -> None:
    train, processes = cfg.train, run.world_size()
    images, rest = divmod(train.batch_size, processes * train.accumulate)
    if rest:
        raise UserError(
            f"TRAIN.batch_size {train.batch_size} cannot be shared by {processes} processes and "
            f"TRAIN.accumulate {train.accumulate}; make it a multiple of their product"
        )
    synced = train.sync_bn and processes > 1 and run.device().type == "cuda"
    if images == 1 and not synced:  # the pyramid's 1x1 bin then has one value a channel, and no variance
        raise UserError(
            f"TRAIN.batch_size {train.batch_size} leaves one image for each forward pass; BatchNorm needs two: "
            "raise it, or lower TRAIN.accumulate or the number of processes"
        )


def _share_buffers(model: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics: those are saved, so those are to be scored."""
    if run.world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _scores(prefix: str, matrix: Tensor) -> dict[str, float]:
    scores = Scores.of(matrix)
    return {f"{prefix}_{name}": getattr(scores, name) for name in ("mIoU", "mAcc", "allAcc")}
