"""Weights of loss terms that change over a run."""

import math
from collections.abc import Mapping

from util.errors import UserError
from util.keys import Schedule


class Weights(dict):
    """Each term's weight, by name; `at` gives them after some epochs, those in `schedules` multiplied by a factor.

    constant: 1 from `from` until `until`, else 0. linear, cosine: 1 up to `from`, then falling to 0 at `until`. Both
    count finished epochs; `until` is the run's end unless given. Raises UserError for a term that is not there.
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
