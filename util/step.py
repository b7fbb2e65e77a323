"""One optimizer step, and what an epoch of them adds up to."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.distill.adapters import Adapted
from model.pspnet import PSPNet
from util import evaluate, run
from util.batch import Batch, Normalize
from util.config import Config
from util.errors import UserError
from util.gradients import GradientShares
from util.metric import confusion_matrix
from util.schedule import Weights

Terms = dict[str, Tensor]
Losses = Callable[[nn.Module, Batch], tuple[Tensor, Terms]]


def optimizer(cfg: Config, model: PSPNet | Adapted) -> torch.optim.Optimizer:
    train = cfg.train
    backbone, heads = model.parameter_groups()
    groups = [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": train.head_lr_factor}]
    return torch.optim.SGD(groups, train.base_lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)


class Stepper:
    """One optimizer step at a time, and the running means and confusion matrix of an epoch, all on the device."""

    def __init__(
        self,
        cfg: Config,
        model: PSPNet | Adapted,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        weights: Weights,
        seed: int,
        per_epoch: int,
    ):
        self.cfg, self.optimizer, self.losses, self.weights = cfg, optimizer, losses, weights
        self.seed, self.per_epoch, self.lr = seed, per_epoch, 0.0
        self.dtype = run.precision(cfg.train.precision)
        self.mask = cfg.distill.mask if cfg.distill else "labelled"
        self.normalize = Normalize(cfg.data, run.device())
        self.probe = GradientShares(model)
        self.model = _distribute(cfg, model)
        self.forward = run.compiled(self.model, cfg.train.compile)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.model.train()
        classes = self.cfg.data.classes
        self.sums, self.count = torch.zeros(len(self.weights) + 1, device=run.device()), 0
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=run.device())
        self.shares: dict[str, float] = {}

    def step(self, raw: tuple[Tensor, Tensor] | UserError, step: int) -> None:
        if isinstance(raw, UserError):
            raise raw
        train = self.cfg.train
        label = raw[1].to(run.device(), non_blocking=True).long()
        batch = Batch(self.normalize(raw[0]), label, train.ignore_label, self.mask)
        run.seed_everything(self.seed, run.rank(), step)
        self.lr = train.base_lr * (1 - step / (self.per_epoch * train.epochs)) ** train.power
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["factor"]
        self.optimizer.zero_grad()
        weights = self.weights.at(step / self.per_epoch)
        for part, share in enumerate(batch.split(train.accumulate), 1):
            wait = isinstance(self.model, DistributedDataParallel) and part < train.accumulate
            with self.model.no_sync() if wait else contextlib.nullcontext():
                self._backward(share, weights, probe=train.gradient_shares and step % self.per_epoch == 0 and part == 1)
        self.optimizer.step()
        self.count += 1

    def _backward(self, batch: Batch, weights: Mapping[str, float], probe: bool) -> None:
        with run.autocast(self.dtype), self.probe if probe else contextlib.nullcontext():
            logits, terms = self.losses(self.model if probe else self.forward, batch)
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
        self.sums += torch.stack([terms[name].detach() for name in self.weights] + [total.detach()]) / parts
        label = batch.labels(1).label
        self.matrix += confusion_matrix(logits.detach().argmax(1), label, self.cfg.data.classes)

    def state(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch needs of it: sums over all processes."""
        sums, matrix = evaluate.add_up(self.sums.clone()), evaluate.add_up(self.matrix.clone())
        return {"sums": sums.cpu(), "matrix": matrix.cpu(), "count": self.count, "shares": self.shares}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.count, self.shares = state["count"], state["shares"]
        if run.is_main():  # the others go on from zero: what counts is the sum over all
            self.sums += state["sums"].to(self.sums.device)
            self.matrix += state["matrix"].to(self.matrix.device)

    def means(self, where: str) -> dict[str, float]:
        """Mean of each term, and of the total as `loss`, over the epoch so far and all processes.

        Raises UserError when one is not finite, naming it and `where`.
        """
        sums = evaluate.add_up(self.sums.clone()) / run.world_size()
        means = dict(zip([*self.weights, "loss"], (sums / self.count).tolist(), strict=True))
        bad = [name for name, value in means.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise UserError(
                f"not finite: {', '.join(bad)}, by {where}; lower TRAIN.base_lr or set TRAIN.precision to fp32 and "
                "start again in another TRAIN.save_path; the checkpoints here are from before"
            )
        return means


def _distribute(cfg: Config, model: nn.Module) -> nn.Module:
    if run.world_size() == 1:
        return model
    if run.device().type != "cuda":
        return DistributedDataParallel(model)
    if cfg.train.sync_bn:  # it exists on CUDA only; elsewhere each process normalises by its own share
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[run.device().index])
