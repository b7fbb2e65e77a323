"""One optimizer step: learning rate, the terms' weights, their weighted sum and its gradient."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.distill.adapters import StudentWithAdapters
from model.pspnet import Output, PSPNet
from model.timm_backbone import convert_sync_batchnorm
from util import distributed
from util.data.batch import Batch
from util.errors import UserError
from util.evaluate.metric import EpochMetrics
from util.keys import Schedule, Train
from util.train.compilation import Compiled
from util.train.gradients import GradientShares

log = logging.getLogger("step")

Terms = dict[str, Tensor]
Losses = Callable[[Callable[[Tensor], Output], Batch], tuple[Tensor, Terms]]


class Weights(dict):
    """Each term's weight, by name; those in `schedules` are multiplied by a factor that changes over the run.

    constant: 1 from `from` until `until`, else 0. linear, cosine: 1 up to `from`, then falling to 0 at `until`. Both
    count finished epochs; `until` is the run's end unless given. Raises UserError for a schedule without a term.
    """

    def __init__(self, weights: Mapping[str, float], schedules: Mapping[str, Schedule], epochs: int):
        super().__init__(weights)
        for name, schedule in schedules.items():
            if name not in weights:
                raise UserError(f"DISTILL.schedules: there is no term {name}; the terms are {', '.join(weights)}")
            if (schedule.until or epochs) <= schedule.start:
                raise UserError(f"DISTILL.schedules.{name}: until is not after from ({schedule.start:g})")
        self.schedules, self.epochs = dict(schedules), epochs

    def at(self, epoch: float) -> dict[str, float]:
        """The weights after `epoch` epochs."""
        return {name: weight * self._factor(name, epoch) for name, weight in self.items()}

    def _factor(self, name: str, epoch: float) -> float:
        if name not in self.schedules:
            return 1.0
        schedule = self.schedules[name]
        end = schedule.until or self.epochs
        if schedule.shape == "constant":
            return float(schedule.start <= epoch < end)
        done = min(max((epoch - schedule.start) / (end - schedule.start), 0.0), 1.0)
        return 1 - done if schedule.shape == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)


class Stepper:
    """Trains `model` on `losses`, one step at a time; `metrics` adds up what an epoch's steps give.

    losses(model, batch) -> (logits at stride 8, {name: scalar term}). per_epoch: steps of an epoch.
    """

    def __init__(
        self,
        train: Train,
        model: PSPNet | StudentWithAdapters,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        weights: Weights,
        per_epoch: int,
        classes: int,
    ):
        self.train, self.losses, self.weights, self.per_epoch = train, losses, weights, per_epoch
        self.device, self.dtype = distributed.device(), distributed.precision(train.precision)
        self.layout, self.optimizer = distributed.training_layout(self.dtype), optimizer
        model.to(memory_format=self.layout)
        for parameter, state in optimizer.state.items():  # a checkpoint's layout; fused steps need the parameter's
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
        self.gradient_shares = GradientShares(model, weights)
        self.model = _distribute(train, model, unused="ce" not in weights)  # heads, where only features are learned
        self.forward = self.model
        self.metrics = EpochMetrics(list(weights), classes, self.device)

    def compile(self) -> None:
        self.forward = Compiled(self.model)

    def step(self, parts: Sequence[Batch], step: int, dropout_seed: int) -> None:
        """parts: the batch, split for TRAIN.accumulate. step: how many were taken before."""
        torch.manual_seed(dropout_seed)
        self._set_learning_rate(step)
        self.optimizer.zero_grad()
        weights = self.weights.at(step / self.per_epoch)
        for number, batch in enumerate(parts, 1):
            probe = number == 1 and step % self.per_epoch == 0 and self.train.gradient_shares
            with self._gradient_sync(last=number == len(parts)):
                logits, terms = self._forward(batch, probe)
                total = sum(weight * terms[name] for name, weight in weights.items())
                if probe:
                    self.metrics.shares = self.gradient_shares.of({name: weights[name] * terms[name] for name in terms})
                (total / len(parts)).backward()
            self.metrics.add(terms, total, 1 / len(parts), logits, batch.labels[1].label, step)
        self.optimizer.step()
        self.metrics.steps += 1

    def _set_learning_rate(self, step: int) -> None:
        """The poly schedule: base_lr * (1 - step / all steps) ^ power, times each group's factor."""
        train = self.train
        self.metrics.lr = train.base_lr * (1 - step / (self.per_epoch * train.epochs)) ** train.power
        for group in self.optimizer.param_groups:
            group["lr"] = self.metrics.lr * group["factor"]

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes add up their gradients in the last of the accumulated parts alone."""
        wait = isinstance(self.model, DistributedDataParallel) and not last
        return self.model.no_sync() if wait else contextlib.nullcontext()

    def _forward(self, batch: Batch, probe: bool) -> tuple[Tensor, Terms]:
        module = self.model if probe else self.forward

        def student(image: Tensor) -> Output:
            # Around the network alone: autocast would compute the losses' matrix products in bfloat16.
            with distributed.autocast(self.dtype):
                return module(image.to(memory_format=self.layout))

        with self.gradient_shares if probe else contextlib.nullcontext():
            logits, terms = self.losses(student, batch)
        if terms.keys() != self.weights.keys():
            raise UserError(
                f"the script computes the terms {sorted(terms)}, the weights are for {sorted(self.weights)}"
            )
        return logits, terms


def build_optimizer(train: Train, model: PSPNet | StudentWithAdapters) -> torch.optim.Optimizer:
    """TRAIN.optimizer, of two groups: the backbone's parameters and the heads'."""
    backbone, heads = model.parameter_groups()
    groups = [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": train.head_lr_factor}]
    options = {"weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, train.base_lr, betas=(train.momentum, 0.999), **options)
    return torch.optim.SGD(groups, train.base_lr, momentum=train.momentum, **options)


def _distribute(train: Train, model: nn.Module, unused: bool) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    if distributed.device().type != "cuda":
        if train.sync_bn:
            log.info("TRAIN.sync_bn needs CUDA; here each process normalises by its own share of the batch")
        return DistributedDataParallel(model, find_unused_parameters=unused)
    if train.sync_bn:
        model = convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[distributed.device().index], find_unused_parameters=unused)
