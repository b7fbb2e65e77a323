"""Steps of distillation to compare: on a GPU and off it, compiled and not."""

from argparse import Namespace

import torch

from benchmark.speed import step_variants

SIZE = Namespace(crop=65, batch=4, classes=4)


def step_of(folder, keys, *changes):
    """The mean losses of four steps of distillation, and by how much they moved the weights."""
    step = step_variants.Step("distillation", SIZE, folder, keys, [step_variants.CHANGES[name] for name in changes])
    before = [p.detach().clone() for p in step.stepper.model.parameters()]
    for _ in range(4):  # CUDA graphs are recorded in the second, and replayed from the third on
        step()
    moved = [(p.detach() - b).flatten() for p, b in zip(step.stepper.model.parameters(), before, strict=True)]
    return step.stepper.metrics.means("the test"), torch.cat(moved).double()


def difference(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()
