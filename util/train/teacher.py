"""The teacher as the losses ask it, and a look at it before the first step: a wrong one teaches in silence."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from model.pspnet import Output, PSPNet
from util import distributed
from util.config import Config
from util.data.batch import Batch
from util.data.lists import scored_list
from util.evaluate import predict
from util.evaluate.metric import Scores
from util.train.teacher_cache import TeacherCache, Writer

MARGIN = 0.05  # mIoU by which another reading of the pixels must win to be spoken of

log = logging.getLogger("teacher")


class Teacher:
    """What the frozen `net` says to a batch: computed without gradients, or read from DISTILL.cache.

    layers: that the losses read beside logits and aux; with a cache no others are in the output.
    """

    def __init__(self, cfg: Config, net: PSPNet, layers: Iterable[str] = ()):
        self.net, self.forward = net, distributed.compiled(net, cfg.train.compile)
        self.dtype, self.cache = next(net.parameters()).dtype, None
        if cfg.distill.cache:
            scores = ["logits"] if net.aux is None else ["logits", "aux"]
            self.cache = TeacherCache(cfg, net, sorted({*scores, *layers}))
            self.write = Writer(self.cache)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        """Logits and aux (N, classes, ...) and features, in the net's dtype; aux is None when it has no such head."""
        if batch.kept and batch.kept.layers is not None:
            return self.cache.decode(batch.kept.layers)
        with distributed.autocast(self.dtype):
            output = self.forward(batch.image.to(self.dtype))
        if batch.kept is None:
            return output
        layers = self.cache.encode(output)
        self.write(batch.kept, layers)
        return self.cache.decode(layers)  # what later runs will read

    @contextlib.contextmanager
    def ready(self, crops: int) -> Iterator[None]:
        """While entered, a run of `crops` crops may ask: what is kept has its place on the disk, and is written."""
        if self.cache is None:
            yield
            return
        with self.cache.opened(crops):
            try:
                yield
            finally:
                self.write.wait()

    def report(self, cfg: Config) -> None:
        report(cfg, self.net)


def report(cfg: Config, teacher: PSPNet) -> None:
    """Score the teacher on DISTILL.check_images val images and say so.

    Warns when it is no better than naming the most frequent class everywhere, and when it does clearly better with
    its classes in another order or its pixels normalised in another way: then it was trained otherwise.
    """
    val = scored_list(cfg.data.val_list, "DATA.val_list", cfg.data)
    count = min(cfg.distill.check_images, len(val))
    if not count:
        return
    pairs = [val[i * len(val) // count] for i in range(count)]
    dtype = distributed.precision(cfg.distill.precision or cfg.train.precision)

    found = predict.validate(teacher, pairs, cfg, dtype)
    scores = Scores.of(found)
    log.info(f"the teacher on {count} val images: mIoU {scores.mIoU:.4f}, pixel accuracy {scores.allAcc:.4f}")
    chance = (found.sum(1).max() / found.sum().clamp(min=1)).item()
    if scores.allAcc <= chance:
        _warn(
            "the teacher is no better than chance there: naming the most frequent class everywhere has a pixel "
            f"accuracy of {chance:.4f}; is {cfg.distill.teacher_path} trained, and on these classes?"
        )
    # Each row's most frequent prediction: a bijection other than the identity is an order of the classes.
    present = found.sum(1) > 0
    order = found.argmax(1)[present]
    own = torch.arange(len(found), device=found.device)[present]
    if len(order) > 2 and len(order.unique()) == len(order) and (order != own).sum() > len(order) / 2:
        _warn(
            "the teacher's classes seem to be in another order than DATA.names_path: it takes "
            + ", ".join(f"{a} for {b}" for a, b in zip(own.tolist(), order.tolist(), strict=True) if a != b)
        )
    mean, std = (torch.tensor(v, device=distributed.device()).view(1, 3, 1, 1) for v in (cfg.data.mean, cfg.data.std))
    for what, reread in {
        "red and blue exchanged": lambda x: x.flip(1),
        "pixels from 0 to 1": lambda x: (x * std + mean) / 255,
        "pixels from -1 to 1": lambda x: (x * std + mean) / 127.5 - 1,
        "pixels not divided by DATA.std": lambda x: x * std,
    }.items():
        other = Scores.of(predict.validate(_Otherwise(teacher, reread), pairs, cfg, dtype)).mIoU
        if other > scores.mIoU + MARGIN:
            _warn(
                f"with {what} the teacher's mIoU there is {other:.4f}: it seems to be trained with another "
                "normalisation than DATA.mean and DATA.std, which student and teacher share"
            )


def _warn(text: str) -> None:
    if distributed.is_main():
        log.warning(f"warning: {text}")


class _Otherwise(nn.Module):
    """The teacher behind another reading of its normalised images."""

    def __init__(self, net: PSPNet, reread: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.reread = net, reread

    def forward(self, image: Tensor) -> Output:
        return self.net(self.reread(image))
