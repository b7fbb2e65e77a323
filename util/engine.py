"""fit(): the one training loop. What is learned comes from the script's `losses`; everything else is here."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model.pspnet import PSPNet
from util import checkpoint, evaluate, run
from util.config import Config
from util.dataset import Batch, Normalize, StepSampler, TrainData, read_list, train_loader
from util.errors import UserError
from util.metric import Scores, confusion_matrix
from util.record import Recorder

Terms = dict[str, Tensor]
Losses = Callable[[nn.Module, Batch], tuple[Tensor, Terms]]


def fit(cfg: Config, model: PSPNet, losses: Losses, weights: Mapping[str, float]) -> None:
    """Train `model` for TRAIN.epochs, writing checkpoints, metrics.jsonl and TensorBoard files to TRAIN.save_path.

    losses(model, batch) -> (logits at stride 8, {name: scalar term}); the total is the sum of weights[name] * term.
    Each term is logged by its name, as it is, without its weight. Goes on from the newest checkpoint if there is one
    (TRAIN.resume). Raises UserError when terms and weights do not match, and when a term is no longer finite.
    """
    train, device = cfg.train, run.device()
    _check_batch(cfg)
    folder = Path(train.save_path)
    if run.is_main():
        _make(folder)
    model.to(device, memory_format=torch.channels_last)
    optimizer = _optimizer(cfg, model)
    step, best, seed = _resume(cfg, folder, model, optimizer)

    data = TrainData(cfg, seed)
    sampler = StepSampler(len(data), train.batch_size, train.epochs, seed, step)
    if sampler.per_epoch == 0:
        raise UserError(f"{cfg.data.train_list} has {len(data)} images, fewer than TRAIN.batch_size {train.batch_size}")
    val = read_list(cfg.data.val_list, "DATA.val_list", cfg.data.data_root)
    done = step // sampler.per_epoch
    recorder = Recorder(cfg, folder, done, val)
    stepper = _Stepper(cfg, model, optimizer, losses, weights, seed, sampler.steps)
    recorder.say(
        f"training on {device.type} in {run.precision(train.precision)}, {len(data)} images, seed {seed}, "
        f"{done} of {train.epochs} epochs done, writing to {folder}"
    )
    batches = iter(train_loader(data, sampler, train.workers))
    for epoch in range(done + 1, train.epochs + 1):
        line = {"epoch": epoch, **_train_epoch(cfg, stepper, batches, epoch, sampler.per_epoch, recorder)}
        _share_buffers(model)
        if train.evaluate:
            line |= _scores("val", evaluate.validate(model, val, cfg))
        recorder.epoch(line, model)
        improved = line.get("val_mIoU", -1.0) > best
        best = max(best, line.get("val_mIoU", -1.0))
        if run.is_main():
            content = {"epoch": epoch, "step": epoch * sampler.per_epoch, "seed": seed, "best": best}
            content |= {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
            if improved:
                checkpoint.save(content, folder / "best.pth")
            if epoch % train.save_freq == 0 or epoch == train.epochs:
                checkpoint.save(content, folder / f"train_epoch_{epoch}.pth")
                checkpoint.prune(folder, train.keep)
    recorder.close()


def _train_epoch(
    cfg: Config, stepper: "_Stepper", batches: Iterator, epoch: int, steps: int, recorder: Recorder
) -> dict[str, float]:
    """One epoch of optimizer steps -> learning rate, mean of each term, scores on the training crops."""
    train, start, title = cfg.train, time.perf_counter(), f"epoch {epoch}/{cfg.train.epochs}"
    stepper.begin_epoch()
    for i in tqdm(range(1, steps + 1), title, leave=False, disable=recorder.no_bar):
        step = (epoch - 1) * steps + i
        stepper.step(next(batches), step - 1)
        if i % train.print_freq == 0 or i == steps:
            means = stepper.means(f"step {i} of epoch {epoch}")
            rate = train.batch_size * i / (time.perf_counter() - start)
            recorder.steps(step, means, stepper.lr, rate, f"{title}, step {i}")
    return {"lr": stepper.lr, **means, **_scores("train", evaluate.add_up(stepper.matrix))}


class _Stepper:
    """One optimizer step at a time, and the running means and confusion matrix of an epoch, all on the device."""

    def __init__(self, cfg, model, optimizer, losses, weights, seed, steps):
        self.cfg, self.optimizer, self.losses, self.weights = cfg, optimizer, losses, dict(weights)
        self.seed, self.steps, self.lr = seed, steps, 0.0
        self.dtype = run.precision(cfg.train.precision)
        self.normalize = Normalize(cfg.data, run.device())
        self.model = _distribute(cfg, model)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.model.train()
        classes = self.cfg.data.classes
        self.sums, self.count = torch.zeros(len(self.weights) + 1, device=run.device()), 0
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=run.device())

    def step(self, raw: tuple[Tensor, Tensor] | UserError, step: int) -> None:
        if isinstance(raw, UserError):
            raise raw
        train = self.cfg.train
        batch = Batch(self.normalize(raw[0]), raw[1].to(run.device(), non_blocking=True).long(), train.ignore_label)
        run.seed_everything(self.seed, run.rank(), step)
        self.lr = train.base_lr * (1 - step / self.steps) ** train.power
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["factor"]
        self.optimizer.zero_grad()
        for part, share in enumerate(batch.split(train.accumulate), 1):
            last = part == train.accumulate
            if isinstance(self.model, DistributedDataParallel):
                self.model.require_backward_grad_sync = last
            self._backward(share)
        self.optimizer.step()
        self.count += 1

    def _backward(self, batch: Batch) -> None:
        with run.autocast(self.dtype):
            logits, terms = self.losses(self.model, batch)
        if terms.keys() != self.weights.keys():
            raise UserError(
                f"the script computes the terms {sorted(terms)}, the weights are for {sorted(self.weights)}"
            )
        total = sum(self.weights[name] * term for name, term in terms.items())
        parts = self.cfg.train.accumulate
        (total / parts).backward()
        self.sums += torch.stack([terms[name].detach() for name in self.weights] + [total.detach()]) / parts
        label = batch.labels(1).label
        self.matrix += confusion_matrix(logits.detach().argmax(1), label, self.cfg.data.classes)

    def means(self, where: str) -> dict[str, float]:
        """Mean of each term, and of the total as `loss`, over the epoch so far and all processes.

        Raises UserError when one is not finite, naming it and `where`.
        """
        sums = evaluate.add_up(self.sums.clone()) / run.world_size()
        means = dict(zip([*self.weights, "loss"], (sums / self.count).tolist(), strict=True))
        bad = [name for name, value in means.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise UserError(
                f"not finite: {', '.join(bad)}, by {where}; lower TRAIN.base_lr or set "
                "TRAIN.precision to fp32, then start again: the last checkpoint is from before"
            )
        return means


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


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder} (TRAIN.save_path): {error.strerror}") from None


def _optimizer(cfg: Config, model: PSPNet) -> torch.optim.Optimizer:
    train = cfg.train
    backbone, heads = model.parameter_groups()
    groups = [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": train.head_lr_factor}]
    return torch.optim.SGD(groups, train.base_lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)


def _share_buffers(model: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics: those are saved, so those are to be scored."""
    if run.world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _distribute(cfg: Config, model: nn.Module) -> nn.Module:
    if run.world_size() == 1:
        return model
    if run.device().type != "cuda":
        return DistributedDataParallel(model)
    if cfg.train.sync_bn:  # it exists on CUDA only; elsewhere each process normalises by its own share
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[run.device().index])


def _resume(cfg: Config, folder: Path, model: PSPNet, optimizer: torch.optim.Optimizer) -> tuple[int, float, int]:
    """Load what TRAIN.resume names into model and optimizer. Returns (steps done, best mIoU, seed)."""
    path = checkpoint.newest(folder) if cfg.train.resume == "auto" else cfg.train.resume
    if path is None:
        return 0, -1.0, _seed(cfg)
    content = checkpoint.read(path)
    absent = [key for key in ("step", "seed", "best", "state_dict", "optimizer") if key not in content]
    if absent:
        raise UserError(f"{path} cannot be resumed: it has no {', '.join(absent)}; give it as TRAIN.weight instead")
    checkpoint.check_match(content["state_dict"], model.state_dict(), path, f"this PSPNet-{model.layers}")
    model.load_state_dict(content["state_dict"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"], content["best"], content["seed"]


def _seed(cfg: Config) -> int:
    """TRAIN.manual_seed, or one drawn by the first process for all."""
    drawn = [cfg.train.manual_seed if cfg.train.manual_seed is not None else torch.seed() % 2**31]
    if run.world_size() > 1:
        dist.broadcast_object_list(drawn)
    return drawn[0]


def _scores(prefix: str, matrix: Tensor) -> dict[str, float]:
    scores = Scores.of(matrix)
    return {f"{prefix}_{name}": getattr(scores, name) for name in ("mIoU", "mAcc", "allAcc")}
