"""Other people's checkouts, run as they are, beside this project.

Nothing of theirs is copied or changed. While a call lasts, their packages `model`, `util` and `tool` stand in for
ours, and what their code of 2019 expects is lent to it: moving to a GPU where none is, collections.Iterable, histc of
integers.
"""

import collections
import collections.abc
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from util import distributed
from util.config import Config
from util.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("model", "util", "tool")


class Checkout:
    """A folder of theirs. `with checkout:` lends; inside it, import_module finds their modules."""

    def __init__(self, path: Path, witness: str):
        """witness: a file that tells this repository from another. Raises UserError when it is not there."""
        if not (path / witness).is_file():
            raise UserError(f"{path} has no {witness}; give the folder of a checkout")
        self.path, self.modules = path.resolve(), {}

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        histc = torch.histc
        away = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(sys, "path", [str(self.path), *away]))
            stack.enter_context(mock.patch.object(collections, "Iterable", collections.abc.Iterable, create=True))
            stack.enter_context(mock.patch.object(torch, "histc", lambda x, **more: histc(x.float(), **more)))
            if not torch.cuda.is_available():
                stack.enter_context(mock.patch.object(Tensor, "cuda", lambda self, **_: self))
            ours = _take_modules()
            sys.modules |= self.modules
            try:
                yield
            finally:
                self.modules = _take_modules()
                sys.modules |= ours

    def load(self, *names: str) -> list[ModuleType]:
        with self.lent(), _bytecode_kept_off():
            return [importlib.import_module(name) for name in names]


def _take_modules() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in NAMES}


def _bytecode_kept_off() -> contextlib.AbstractContextManager:
    return mock.patch.object(sys, "dont_write_bytecode", True)  # their folder stays as it is


def original_step(path: Path, image: Tensor, label: Tensor) -> Callable[[], None]:
    """One step of PSPNet-knowledge-distillation's train(): its KDNet, losses, SGD and running mIoU.

    image: (N, 3, H, W) float32, normalised; label: (N, H, W) int64. Its number of classes, 21, is fixed in its code.
    """
    checkout = Checkout(path, "train_50_18_my.py")
    script, kdnet, pspnet, resnet = checkout.load("train_50_18_my", "model.kdnet", "model.pspnet", "model.resnet")
    for depth in (18, 50):  # random weights instead of a download and of a file
        setattr(resnet, f"resnet{depth}", _untrained(getattr(resnet, f"resnet{depth}")))
    kdnet.teacher_loader = lambda: pspnet.PSPNet(tag="teacher", layers=50, dropout=0.0)
    script.args = SimpleNamespace(
        epochs=50, zoom_factor=8, multiprocessing_distributed=False, classes=21, ignore_label=255,
        base_lr=0.01, index_split=5, print_freq=50, power=0.9,
    )  # fmt: skip
    script.logger, script.writer = mock.Mock(), mock.Mock()
    with checkout.lent():
        model = kdnet.KDNet(temperature=1.9, alpha=0.25).to(distributed.device())
    student = model.student_net
    parts = [getattr(student, name) for name in "layer0 layer1 layer2 layer3 layer4 ppm cls aux_s".split()]
    groups = [{"params": part.parameters(), "lr": 0.01 * (1 if i < 5 else 10)} for i, part in enumerate(parts)]
    sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with checkout.lent():
            script.train([(image, label)], model, sgd, 0)

    return step


def _untrained(network: Callable) -> Callable:
    return lambda pretrained=False, **more: network(pretrained=False, **more)


def semseg_testing(path: Path, net: nn.Module, cfg: Config, folder: Path) -> Callable[[], None]:
    """semseg's tool/test.py on TEST.test_list: its loader, sliding windows and writing, to `folder`/gray and /color.

    net: (N, 3, H, W) -> logits at full size, in float32, as its own PSPNet gives them.
    """
    checkout = Checkout(path, "tool/test.py")
    script, data, transform = checkout.load("tool.test", "util.dataset", "util.transform")
    script.logger = mock.Mock()
    test = cfg.test
    with checkout.lent(), contextlib.redirect_stdout(None):
        convert = transform.Compose([transform.ToTensor()])
        pairs = data.SemData(test.split, cfg.data.data_root, test.test_list, convert)
    loader = torch.utils.data.DataLoader(pairs, batch_size=1, num_workers=cfg.train.workers)
    maps = [str(folder / kind) for kind in ("gray", "color")]
    colors = np.loadtxt(cfg.data.colors_path).astype("uint8").ravel().tolist()  # Pillow takes no 2D array now

    def run_test() -> None:
        with checkout.lent():
            script.test(
                loader, pairs.data_list, net, cfg.data.classes, cfg.data.mean, cfg.data.std, test.base_size,
                test.test_h, test.test_w, test.scales, *maps, colors,
            )  # fmt: skip

    return run_test


def semseg_samples(path: Path, cfg: Config) -> torch.utils.data.Dataset:
    """semseg's SemData over DATA.train_list with the transforms of its tool/train.py and the numbers of `cfg`."""
    checkout = Checkout(path, "util/transform.py")
    data, transform = checkout.load("util.dataset", "util.transform")
    t, mean = cfg.train, list(cfg.data.mean)
    with checkout.lent(), contextlib.redirect_stdout(None):
        steps = [
            transform.RandScale([t.scale_min, t.scale_max]),
            transform.RandRotate([t.rotate_min, t.rotate_max], padding=mean, ignore_label=t.ignore_label),
            transform.RandomGaussianBlur(),
            transform.RandomHorizontalFlip(),
            transform.Crop([t.train_h, t.train_w], crop_type="rand", padding=mean, ignore_label=t.ignore_label),
            transform.ToTensor(),
            transform.Normalize(mean=mean, std=list(cfg.data.std)),
        ]
        return data.SemData("train", cfg.data.data_root, cfg.data.train_list, transform.Compose(steps))
