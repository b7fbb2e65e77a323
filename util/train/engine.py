"""fit(): the one training loop. What is learned comes from the script's `losses`; everything else is here."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from model.distill.adapters import StudentWithAdapters
from model.pspnet import PSPNet
from util import distributed
from util.config import Config
from util.data.lists import scored_list
from util.data.loader import ResumableBatchSampler, TrainData, train_loader
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.metric import Scores
from util.stop import SYNC_EVERY, Interrupt, lock, worker_death_as_user_error
from util.train import dry_run
from util.train.record import Recorder
from util.train.resume import Progress, resume
from util.train.schedule import Weights
from util.train.step import Losses, Stepper, optimizer
from util.train.teacher import Teacher


def fit(
    cfg: Config,
    model: PSPNet | StudentWithAdapters,
    losses: Losses,
    weights: Mapping[str, float],
    teacher: Teacher | None = None,
) -> None:
    """Train `model` for TRAIN.epochs, writing checkpoints, metrics.jsonl and TensorBoard files to TRAIN.save_path.

    losses(model, batch) -> (logits at stride 8, {name: scalar term}); the total is the sum of weights[name] * term,
    each weight following its schedule in DISTILL.schedules. Each term is logged by its name, as it is, without its
    weight. teacher: what the losses ask; it is scored before a run's first step. Goes on from the newest checkpoint if
    there is one (TRAIN.resume). On SIGTERM, SIGINT or SIGUSR1 it finishes the step, saves, and exits with status 75.
    Ends early after TRAIN.patience epochs without a better val mIoU. Raises UserError when terms and weights do not
    match, and when a term is no longer finite.
    """
    train, device = cfg.train, distributed.device()
    weights = Weights(weights, cfg.distill.schedules if cfg.distill else {}, train.epochs)
    _check_batch(cfg)
    if cfg.check:
        dry_run.training(cfg, model, losses, weights, teacher)
        return
    folder = Path(train.save_path)
    net = model.net if isinstance(model, StudentWithAdapters) else model
    with lock(folder), worker_death_as_user_error(), Interrupt() as interrupt, contextlib.ExitStack() as inside:
        model.to(device, memory_format=torch.channels_last)
        descent = optimizer(cfg, model)
        progress = resume(cfg, folder, model, descent)
        data = TrainData(cfg, progress.seed, teacher and teacher.cache)
        sampler = ResumableBatchSampler(data, train, progress.step)
        if teacher:
            inside.enter_context(teacher.ready(sampler.crops))
        val = scored_list(cfg.data.val_list, "DATA.val_list", cfg.data)
        done = (progress.step - bool(progress.partial)) // sampler.per_epoch
        recorder = Recorder(cfg, folder, done, val, progress.step + (not progress.partial))
        stepper = Stepper(cfg, model, descent, losses, weights, progress.seed, sampler.per_epoch, progress.skipped)
        more = f" and {data.unlabelled} unlabelled" if data.unlabelled else ""
        recorder.say(
            f"training on {device.type} in {stepper.dtype}, {data.labelled} images{more}, seed "
            f"{progress.seed}, {done} of {train.epochs} epochs done, writing to {folder}"
        )
        if teacher and not progress.step:
            teacher.report(cfg)
        batches = iter(train_loader(data, sampler, train.workers))
        for epoch in range(done + 1, train.epochs + 1):
            if progress.exhausted(epoch - 1):  # resumed after it had ended
                break
            line = _train_epoch(cfg, stepper, batches, epoch, sampler.per_epoch, recorder, progress, interrupt)
            _share_buffers(net)
            if train.evaluate:
                progress.partial = stepper.state()  # neither a kill nor a signal in a long validation costs the epoch
                progress.save("interrupted.pth")
                matrix = predict.validate(net, val, cfg, stop=interrupt.agreed)
                if matrix is None:
                    recorder.close()
                    interrupt.leave(f"stopped in the validation of epoch {epoch}; the same command repeats that alone")
                line |= _scores("val", matrix)
                line["gap"] = line["train_mIoU"] - line["val_mIoU"]
                progress.partial = None
            recorder.epoch(line, net, progress.step)
            if line.get("val_mIoU", -1.0) > progress.best:
                progress.best, progress.best_epoch = line["val_mIoU"], epoch
                progress.save("best.pth")
            due = epoch % train.save_freq == 0 or epoch == train.epochs or progress.exhausted(epoch)
            if due:
                progress.save(f"train_epoch_{epoch}.pth")
            going_on = epoch < train.epochs and not progress.exhausted(epoch)
            if going_on and interrupt.agreed(meeting=True):  # told in the last step of the epoch
                if not due:
                    progress.save("interrupted.pth")
                recorder.close()
                interrupt.leave(f"stopped after epoch {epoch}; the same command goes on from there")
        epoch = progress.step // sampler.per_epoch
        if epoch < train.epochs:
            recorder.say(
                f"ended after epoch {epoch}: no better val mIoU in {train.patience} epochs (TRAIN.patience); the best "
                f"one, {progress.best:.4f} of epoch {progress.best_epoch}, is in {folder / 'best.pth'}"
            )
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
    train, title, first = cfg.train, f"epoch {epoch}/{cfg.train.epochs}", progress.step - (epoch - 1) * steps + 1
    stepper.begin_epoch()
    if progress.partial:
        stepper.load_state(progress.partial)
        progress.partial = None
    start = time.perf_counter()

    def report(i: int) -> dict[str, float]:
        means = stepper.means(f"step {i} of epoch {epoch}")
        rate = train.batch_size * (i - first + 1) / (time.perf_counter() - start)
        recorder.steps(progress.step, means, stepper.lr, rate, f"{title}, step {i}")
        return means

    for i in tqdm(range(first, steps + 1), title, steps, leave=False, disable=recorder.no_bar, initial=first - 1):
        stepper.step(next(batches), progress.step)
        progress.step += 1
        progress.skipped = stepper.skipped
        if i % train.print_freq == 0 and i < steps:
            report(i)
        if i < steps and interrupt.agreed(meeting=i == 1 or i % SYNC_EVERY == 0):
            stepper.means(f"step {i} of epoch {epoch}")  # nothing that is not finite may be saved
            progress.partial = stepper.state()
            progress.save("interrupted.pth")
            recorder.close()
            interrupt.leave(f"stopped after step {i} of {title}; the same command goes on from there")
    means = report(steps)  # also where a resumed epoch lacks nothing but its validation
    if not means:
        raise UserError(f"every step of epoch {epoch} was skipped (TRAIN.skip_nonfinite); lower TRAIN.base_lr")
    moving = {f"weight_{name}": stepper.weights.at(epoch - 1)[name] for name in stepper.weights.schedules}
    scores = _scores("train", distributed.all_reduce(stepper.matrix))
    return {"epoch": epoch, "lr": stepper.lr, **means, **moving, **stepper.shares, **scores}


def _check_batch(cfg: Config) -> None:
    train, processes = cfg.train, distributed.world_size()
    images, rest = divmod(train.batch_size, processes * train.accumulate)
    if rest:
        raise UserError(
            f"TRAIN.batch_size {train.batch_size} cannot be shared by {processes} processes and "
            f"TRAIN.accumulate {train.accumulate}; make it a multiple of their product"
        )
    unlabelled, rest = divmod(train.unlabelled_per_batch, processes * train.accumulate)
    if rest:
        raise UserError(
            f"TRAIN.unlabelled_per_batch {train.unlabelled_per_batch} cannot be shared by {processes} processes and "
            f"TRAIN.accumulate {train.accumulate}; make it a multiple of their product"
        )
    synced = train.sync_bn and processes > 1 and distributed.device().type == "cuda"
    if images + unlabelled == 1 and not synced:  # the pyramid's 1x1 bin then has one value a channel, and no variance
        raise UserError(
            f"TRAIN.batch_size {train.batch_size} leaves one image for each forward pass; BatchNorm needs two: "
            "raise it, or lower TRAIN.accumulate or the number of processes"
        )


def _share_buffers(model: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics: those are saved, so those are to be scored."""
    if distributed.world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _scores(prefix: str, matrix: Tensor) -> dict[str, float]:
    scores = Scores.of(matrix)
    return {f"{prefix}_{name}": getattr(scores, name) for name in ("mIoU", "mAcc", "allAcc")}
