"""fit(): the training loop. What is learned comes from the script's `losses`; the rest is here."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from model.distill.adapters import StudentWithAdapters
from model.pspnet import LAYER_ZOOM_FACTOR, PSPNet
from util import distributed, seeds
from util.config import Config
from util.data import lists
from util.data.batch import ToDevice
from util.data.loader import ResumableBatchSampler, TrainData, train_loader
from util.errors import UserError
from util.evaluate import predict
from util.evaluate.metric import Scores
from util.stop import SYNC_EVERY, Interrupt, lock, worker_death_as_user_error
from util.train import compilation, dry_run
from util.train.checks import check_batch, check_classes, warn_of_shared_images
from util.train.record import Recorder
from util.train.resume import resume
from util.train.step import Losses, Stepper, Weights, build_optimizer
from util.train.teacher import Teacher


class Run:
    """A training run in memory: network, optimizer, progress, data. Writes nothing."""

    def __init__(
        self,
        cfg: Config,
        model: PSPNet | StudentWithAdapters,
        losses: Losses,
        weights: Weights,
        teacher: Teacher | None,
    ):
        check_batch(cfg.train)
        self.cfg, self.teacher = cfg, teacher
        self.net = model.net if isinstance(model, StudentWithAdapters) else model
        model.to(distributed.device())
        self.val = lists.val_pairs(cfg.data)
        optimizer = build_optimizer(cfg.train, model)
        self.progress = resume(cfg, model, optimizer)
        cache = teacher.cache if teacher and not cfg.check else None
        self.data = TrainData(cfg.data, cfg.train, self.progress.seed, cache)
        if distributed.is_main():
            if self.data.labelled:
                check_classes(cfg, [pair.label for pair in self.data.pairs[: self.data.labelled]])
            warn_of_shared_images(self.data.pairs, self.val)
        self.sampler = ResumableBatchSampler(self.data, self.progress.step)
        self.stepper = Stepper(cfg.train, model, optimizer, losses, weights, self.sampler.per_epoch, cfg.data.classes)
        if compilation.wanted(cfg.train, self.sampler.steps, teacher is not None):
            for part in (self.stepper, teacher) if teacher else (self.stepper,):
                part.compile()
        mask = cfg.distill.mask if cfg.distill else "labelled"
        zooms = {*LAYER_ZOOM_FACTOR.values(), cfg.train.zoom_factor}
        self.to_device = ToDevice(cfg.data, cfg.train, mask, zooms, distributed.device())

    @property
    def epochs_done(self) -> int:
        """An epoch counts when its line in metrics.jsonl is written."""
        return (self.progress.step - bool(self.progress.partial)) // self.stepper.per_epoch

    def open(self, interrupt: Interrupt) -> None:
        """Open the files that the run writes, and start the processes that load images."""
        self.interrupt = interrupt
        first = self.progress.step + (not self.progress.partial)
        self.recorder = Recorder(self.cfg, self.epochs_done, self.val, first)
        self.batches = iter(train_loader(self.data, self.sampler, self.cfg.train.workers))


def fit(
    cfg: Config,
    model: PSPNet | StudentWithAdapters,
    losses: Losses,
    weights: Mapping[str, float],
    teacher: Teacher | None = None,
) -> None:
    """Train `model` for TRAIN.epochs, writing checkpoints, metrics.jsonl and TensorBoard files to TRAIN.save_path.

    losses(model, batch) -> (logits at stride 8, {name: scalar term}); the total is the sum of weights[name] * term,
    each weight following its schedule in DISTILL.schedules. Each term is logged by its name, without its weight.
    teacher: the one that `losses` calls; it is scored before a run's first step. Resumes from the newest checkpoint
    (TRAIN.resume). On SIGTERM, SIGINT or SIGUSR1 it finishes the step, saves, and exits with status 75. Ends early
    after TRAIN.patience epochs without a better val mIoU. Raises UserError when terms and weights do not match, and
    when a term is no longer finite.
    """
    if cfg.distill and teacher is None:
        raise UserError("this script trains without a teacher, and the config has DISTILL; run train_50_18.py")
    weights = Weights(weights, cfg.distill.schedules if cfg.distill else {}, cfg.train.epochs)
    distributed.allow_tf32(cfg.train.precision, cfg.distill and cfg.distill.precision)
    if cfg.check:
        dry_run.training(Run(cfg, model, losses, weights, teacher))
        return
    with lock(Path(cfg.train.save_path)), worker_death_as_user_error(), Interrupt() as interrupt:
        run = Run(cfg, model, losses, weights, teacher)
        with teacher.writing(run.sampler.crops) if teacher else contextlib.nullcontext():
            run.open(interrupt)
            run.recorder.start(run.data, run.stepper.dtype, run.progress.seed, run.epochs_done)
            if teacher and not run.progress.step:
                teacher.check(cfg, run.val)
            done = run.epochs_done
            for epoch in range(done + 1, cfg.train.epochs + 1):
                if run.progress.exhausted(epoch - 1):
                    break
                line = train_epoch(run, epoch)
                finish_epoch(run, epoch, line)
        run.recorder.end(run.progress, done)


def train_epoch(run: Run, epoch: int) -> dict[str, float]:
    """The steps that an epoch still lacks -> its line of metrics.jsonl, without the scores on val."""
    train, stepper, progress, recorder = run.cfg.train, run.stepper, run.progress, run.recorder
    steps, metrics, title = stepper.per_epoch, stepper.metrics, f"epoch {epoch}/{train.epochs}"
    first, start = progress.step - (epoch - 1) * steps + 1, time.perf_counter()
    metrics.reset()
    if progress.partial:
        metrics.load_state(progress.partial)
        progress.partial = None
    stepper.model.train()
    dropout = dropout_seeds(progress.seed, epoch, steps)
    for i in tqdm(range(first, steps + 1), title, steps, leave=False, disable=recorder.no_bar, initial=first - 1):
        stepper.step(run.to_device(next(run.batches)), progress.step, dropout[i - 1])
        progress.step += 1
        if i % train.print_freq == 0 and i < steps:
            rate = train.images_per_step * (i - first + 1) / (time.perf_counter() - start)
            recorder.steps(progress.step, metrics.means(f"step {i} of {title}"), metrics.lr, rate, f"{title}, step {i}")
        if i < steps and run.interrupt.stop_requested(sync=i == 1 or i % SYNC_EVERY == 0):
            metrics.means(f"step {i} of {title}")  # raises before a network that is not finite is saved
            progress.partial = metrics.state()
            _stop(run, f"stopped after step {i} of {title}; the same command resumes")
    means = metrics.means(f"step {steps} of {title}")  # also where a resumed epoch lacks only its validation
    schedules = {f"weight_{name}": stepper.weights.at(epoch - 1)[name] for name in stepper.weights.schedules}
    matrix = distributed.all_reduce(metrics.matrix.clone())
    if epoch == 1 and run.data.labelled:
        recorder.labels_seen(matrix, steps)
    if run.teacher and run.data.labelled:
        run.teacher.report_crops()
    scores = _scores("train", matrix) if run.data.labelled else {}
    return {"epoch": epoch, "lr": metrics.lr, **means, **schedules, **metrics.shares, **scores}


def finish_epoch(run: Run, epoch: int, line: dict[str, float]) -> None:
    """Validate, record the epoch's line, save what is due; stop here if that was requested."""
    train, progress = run.cfg.train, run.progress
    _broadcast_buffers(run.net)
    if train.evaluate:
        progress.partial = run.stepper.metrics.state()
        progress.save("interrupted.pth")  # neither a kill nor a signal in a long validation costs the epoch
        if run.teacher:
            run.teacher.flush()  # validation forks worker processes
        matrix = predict.validate(run.net, run.val, run.cfg, stop=run.interrupt.stop_requested)
        if matrix is None:
            run.recorder.close()
            run.interrupt.leave(f"stopped in the validation of epoch {epoch}; the same command repeats it")
        line |= _scores("val", matrix)
        line["gap"] = line["train_mIoU"] - line["val_mIoU"]
        progress.partial = None
    run.recorder.epoch(line, progress.step)
    if line.get("val_mIoU", -1.0) > progress.best:
        progress.best, progress.best_epoch = line["val_mIoU"], epoch
        progress.save("best.pth")
    last = epoch == train.epochs or progress.exhausted(epoch)
    due = last or epoch % train.save_freq == 0
    if due:
        progress.save(f"train_epoch_{epoch}.pth")
    if "train_mIoU" in line:  # without labels the scores are those of chance
        run.recorder.pictures(progress.step, run.net)
    if not last and run.interrupt.stop_requested(sync=True):  # requested in the last step of the epoch
        _stop(run, f"stopped after epoch {epoch}; the same command resumes", saved=due)


def dropout_seeds(seed: int, epoch: int, steps: int) -> list[int]:
    """A seed for each step of an epoch on this rank."""
    generator = seeds.generator(seeds.Stream.DROPOUT, seed, distributed.rank(), epoch)
    return generator.integers(2**63, size=steps).tolist()


def _stop(run: Run, text: str, saved: bool = False) -> None:
    if not saved:
        run.progress.save("interrupted.pth")
    run.recorder.close()
    run.interrupt.leave(text)


def _broadcast_buffers(model: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics: those are saved, so those are to be scored."""
    if distributed.world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _scores(prefix: str, matrix: Tensor) -> dict[str, float]:
    scores = Scores.of(matrix)
    return {f"{prefix}_{name}": getattr(scores, name) for name in ("mIoU", "mAcc", "allAcc")}
