"""One optimizer step, and what an epoch of them adds up to."""

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.pspnet import PSPNet
from util import evaluate, run
from util.config import Config
from util.dataset import Batch, Normalize
from util.errors import UserError
from util.metric import confusion_matrix

Terms = dict[str, Tensor]
Losses = Callable[[nn.Module, Batch], tuple[Tensor, Terms]]


def optimizer(cfg: Config, model: PSPNet) -> torch.optim.Optimizer:
    train = cfg.train
    backbone, heads = model.parameter_groups()
    groups = [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": train.head_lr_factor}]
    return torch.optim.SGD(groups, train.base_lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)


class Stepper:
    """One optimizer step at a time, and the running means and confusion matrix of an epoch, all on the device."""

    def __init__(
        self,
        cfg: Config,
        model: PSPNet,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        weights: Mapping[str, float],
        seed: int,
        steps: int,
    ):
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
            wait = isinstance(self.model, DistributedDataParallel) and part < train.accumulate
            with self.model.no_sync() if wait else contextlib.nullcontext():
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

    def state(self) -> dict[str, Tensor | int]:
        """What a checkpoint in the middle of an epoch needs of it: sums over all processes."""
        sums, matrix = evaluate.add_up(self.sums.clone()), evaluate.add_up(self.matrix.clone())
        return {"sums": sums.cpu(), "matrix": matrix.cpu(), "count": self.count}

    def load_state(self, state: Mapping[str, Tensor | int]) -> None:
        self.count = state["count"]
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
