"""TRAIN.compile: whether torch.compile pays, and the way back where it fails."""

import importlib.util
import logging
import os
import shutil

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from model.pspnet import Output
from util import distributed
from util.errors import UserError, out_of_memory, worker_death
from util.keys import Train

# Measured on one H100 in bfloat16, batch 16, crop 473 (benchmark/README.md). A slower GPU saves more in each step.
COST = 90.0  # seconds to build and compile student and teacher
SAVED = {"alone": 1.2e-3, "with a teacher": 5.8e-3}  # seconds for each million pixels of crops

log = logging.getLogger("compile")


def wanted(train: Train, steps: int, teacher: bool) -> bool:
    """TRAIN.compile, with `auto` decided: on CUDA, with a compiler, where `steps` save more than compiling costs.

    steps: of the whole run, so that a resumed one decides as it did at its start. Raises UserError where compiling is
    asked for and there is no compiler.
    """
    if not train.compile:
        return False
    missing = _missing()
    if train.compile is True:
        if missing:
            raise UserError(f"TRAIN.compile needs {missing}, or set it to False")
        return True
    if distributed.device().type != "cuda":
        return False
    images = train.images_per_step / distributed.world_size()
    saved = SAVED["with a teacher" if teacher else "alone"] * steps * images * train.train_h * train.train_w / 1e6
    pays = not missing and saved > COST
    log.info(
        "TRAIN.compile auto: %s; %d steps save about %.0f s, compiling costs about %.0f s%s",
        "compiling" if pays else "not compiling",
        steps,
        saved,
        COST,
        f", and it needs {missing}" if missing else "",
    )
    return pays


def _missing() -> str | None:
    """What torch.compile lacks on this machine, and how to get it."""
    if not shutil.which(os.environ.get("CXX", "g++")):
        return "a C++ compiler: install g++ (or name one in CXX)"
    if distributed.device().type == "cuda" and not importlib.util.find_spec("triton"):
        return "the package triton: install it"
    return None


class Compiled:
    """torch.compile of `module`, with shared parameters. A failure is a warning, and leaves the module as it is.

    For batches of one shape. Validation calls the module itself, since its images have many.
    """

    def __init__(self, module: nn.Module):
        if hasattr(functorch, "force_non_lazy_backward_lowering"):  # a backward pass that fails does so in the call
            functorch.force_non_lazy_backward_lowering = True
        self.module, self.function = module, torch.compile(module, dynamic=False)

    def __call__(self, image: Tensor) -> Output:
        if self.function is not self.module:
            try:
                return self.function(image)
            except Exception as error:
                if isinstance(error, UserError) or worker_death(error) or out_of_memory(error):
                    raise
                reason = repr(getattr(error, "inner_exception", error))  # of the back end, without Dynamo's advice
                log.warning("warning: torch.compile failed (%.300s); going on without (TRAIN.compile)", reason)
                self.function = self.module
        return self.module(image)
