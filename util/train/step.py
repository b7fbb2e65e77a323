"""One optimizer step, and what an epoch of them adds up to."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.distill.adapters import StudentWithAdapters
from model.labels import sample_labels
from model.pspnet import Output, PSPNet
from util import distributed
from util.config import Config
from util.data.batch import Batch, Normalize
from util.errors import UserError
from util.evaluate.metric import confusion_matrix
from util.train.gradients import GradientShares
from util.train.schedule import Weights
from util.train.teacher_cache import CachedOutputs

NEVER = 2**62  # a step that no run has

log = logging.getLogger("step")

Terms = dict[str, Tensor]
Losses = Callable[[Callable[[Tensor], Output], Batch], tuple[Tensor, Terms]]


def optimizer(cfg: Config, model: PSPNet | StudentWithAdapters) -> torch.optim.Optimizer:
    train = cfg.train
    backbone, heads = model.parameter_groups()
    groups = [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": train.head_lr_factor}]
    return torch.optim.SGD(groups, train.base_lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)


class Stepper:
    """One optimizer step at a time, and the running means and confusion matrix of an epoch, all on the device."""

    def __init__(
        self,
        cfg: Config,
        model: PSPNet | StudentWithAdapters,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        weights: Weights,
        seed: int,
        per_epoch: int,
        skipped: int = 0,
    ):
        self.cfg, self.optimizer, self.losses, self.weights = cfg, optimizer, losses, weights
        self.seed, self.per_epoch, self.skipped, self.lr = seed, per_epoch, skipped, 0.0
        self.dtype = distributed.precision(cfg.train.precision)
        self.mask = cfg.distill.mask if cfg.distill else "labelled"
        self.normalize = Normalize(cfg.data, distributed.device())
        self.probe = GradientShares(model)
        self.model = _distribute(cfg, model)
        self.forward = distributed.compiled(self.model, cfg.train.compile)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.model.train()
        classes = self.cfg.data.classes
        self.sums, self.count = torch.zeros(len(self.weights) + 1, device=distributed.device()), 0
        self.first_bad = torch.full((len(self.weights) + 1,), NEVER, device=distributed.device())  # step, for each term
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=distributed.device())
        self.shares: dict[str, float] = {}

    def step(self, raw: tuple[Tensor, Tensor, CachedOutputs | None] | UserError, step: int) -> None:
        """raw: as util/loader.py's collate gives it, (N, H, W, 3) and (N, H, W)."""
        if isinstance(raw, UserError):
            raise raw
        train = self.cfg.train
        image, label, kept = raw
        label = label.to(distributed.device(), non_blocking=True).long()
        batch = Batch(self.normalize(image), label, train.ignore_label, self.mask, kept=kept)
        distributed.seed_everything(self.seed, distributed.rank(), step)
        self.lr = train.base_lr * (1 - step / (self.per_epoch * train.epochs)) ** train.power
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["factor"]
        self.optimizer.zero_grad()
        before = self._snapshot() if train.skip_nonfinite else None
        weights = self.weights.at(step / self.per_epoch)
        for part, share in enumerate(batch.split(train.accumulate), 1):
            wait = isinstance(self.model, DistributedDataParallel) and part < train.accumulate
            probe = train.gradient_shares and step % self.per_epoch == 0 and part == 1
            with self.model.no_sync() if wait else contextlib.nullcontext():
                self._backward(share, step, weights, probe)
        if before and self._skip(before, step):
            return
        self.optimizer.step()
        self.count += 1

    def _snapshot(self) -> tuple:
        """What a forward and backward pass changes: BatchNorm's running statistics and the epoch's sums."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        return buffers, self.sums.clone(), self.matrix.clone(), self.first_bad.clone(), self.shares

    def _skip(self, before: tuple, step: int) -> bool:
        """Whether this step's terms or gradient are not finite; if so all is as before it, and the step is counted.

        This waits for the device in every step. That is the price of TRAIN.skip_nonfinite: without it, a bad step is
        found at the next print_freq (means) or save, which cost nothing, but then the weights are spoilt and the run
        must stop. Raises UserError when more than TRAIN.skip_nonfinite steps were bad.
        """
        buffers, sums, matrix, first_bad, shares = before
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad.norm() for p in parameters if p.grad is not None]
        bad = (~torch.cat([self.sums - sums, torch.stack(gradients).sum()[None]]).isfinite()).long()
        bad = distributed.all_reduce(bad).tolist()  # the processes must agree
        if not any(bad):
            return False
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        self.sums, self.matrix, self.first_bad, self.shares = sums, matrix, first_bad, shares
        self.skipped += 1
        names = [name for name, flag in zip([*self.weights, "loss", "gradient"], bad, strict=True) if flag]
        allowed = self.cfg.train.skip_nonfinite
        if self.skipped > allowed:
            raise UserError(
                f"not finite: {', '.join(names)}, in step {step + 1}, after {allowed} such steps "
                "(TRAIN.skip_nonfinite); lower TRAIN.base_lr or set TRAIN.precision to fp32"
            )
        log.warning(
            "warning: step %d skipped, not finite: %s (%d of %d)", step + 1, ", ".join(names), self.skipped, allowed
        )
        return True

    def _backward(self, batch: Batch, step: int, weights: Mapping[str, float], probe: bool) -> None:
        module = self.model if probe else self.forward

        def student(image: Tensor) -> Output:
            with distributed.autocast(
                self.dtype
            ):  # of the network alone: autocast would make bfloat16 of the losses' products
                return module(image)

        with self.probe if probe else contextlib.nullcontext():
            logits, terms = self.losses(student, batch)
        if terms.keys() != self.weights.keys():
            raise UserError(
                f"the script computes the terms {sorted(terms)}, the weights are for {sorted(self.weights)}"
            )
        weighted = {name: weights[name] * terms[name] for name in self.weights}
        if probe:
            self.shares = self.probe.shares(weighted)
        total = sum(weighted.values())
        parts = self.cfg.train.accumulate
        (total / parts).backward()
        values = torch.stack([terms[name].detach() for name in self.weights] + [total.detach()])
        self.sums += values / parts
        self.first_bad = torch.where(values.isfinite(), self.first_bad, self.first_bad.clamp(max=step + 1))
        self.matrix += confusion_matrix(logits.detach().argmax(1), sample_labels(batch.label, 1), self.cfg.data.classes)

    def state(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch needs of it: sums over all processes."""
        sums, matrix = distributed.all_reduce(self.sums.clone()), distributed.all_reduce(self.matrix.clone())
        return {
            "sums": sums.cpu(),
            "matrix": matrix.cpu(),
            "count": self.count,
            "lr": self.lr,
            "shares": self.shares,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state["sums"].shape != self.sums.shape or state["matrix"].shape != self.matrix.shape:
            raise UserError("the checkpoint's running sums are of other terms; remove it to go on from the one before")
        self.count, self.lr, self.shares = state["count"], state["lr"], state["shares"]
        if distributed.is_main():  # the others go on from zero: what counts is the sum over all
            self.sums += state["sums"].to(self.sums.device)
            self.matrix += state["matrix"].to(self.matrix.device)

    def means(self, where: str) -> dict[str, float]:
        """Mean of each term, and of the total as `loss`, over the epoch so far and all processes.

        Raises UserError when one is not finite, naming the first step and its terms. Empty when all were skipped.
        """
        if not self.count:
            return {}
        sums = distributed.all_reduce(self.sums.clone()) / distributed.world_size()
        means = dict(zip([*self.weights, "loss"], (sums / self.count).tolist(), strict=True))
        if not all(math.isfinite(value) for value in means.values()):
            first = distributed.all_reduce(self.first_bad.clone(), dist.ReduceOp.MIN).tolist()
            names = [name for name, step in zip(means, first, strict=True) if step == min(first)]
            raise UserError(
                f"not finite: {', '.join(names)}, in step {min(first)} (found by {where}); lower TRAIN.base_lr or set "
                "TRAIN.precision to fp32 and start again in another TRAIN.save_path; the checkpoints here are from "
                "before; TRAIN.skip_nonfinite tolerates single steps"
            )
        return means


def _distribute(cfg: Config, model: nn.Module) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    if distributed.device().type != "cuda":
        if cfg.train.sync_bn:
            log.info("TRAIN.sync_bn needs CUDA; here each process normalises by its own share of the batch")
        return DistributedDataParallel(model)
    if cfg.train.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[distributed.device().index])
