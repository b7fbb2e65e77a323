"""Read by every Python process that a test starts (conftest.py names this folder in PYTHONPATH): narrow networks.

model.backbone is changed when it is imported, so that a process that needs no network does not import torch.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def narrow(spec):
    """A backbone.Spec with an eighth of the channels."""
    return spec._replace(width=spec.width // 8, aux_channels=spec.aux_channels // 8)


class NarrowBackbone:
    """An import hook that narrows RESNETS."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name != "model.backbone":
            return None
        found = PathFinder.find_spec(name, path)
        execute = found.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.RESNETS |= {depth: narrow(spec) for depth, spec in module.RESNETS.items()}

        found.loader.exec_module = exec_module
        return found


if __name__ == "sitecustomize":  # not where a test imports it
    sys.meta_path.insert(0, NarrowBackbone)
