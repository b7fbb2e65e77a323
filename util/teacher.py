"""A look at the teacher before the first step: distillation from a wrong one fails in silence."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.pspnet import Output, PSPNet
from util import evaluate, run
from util.config import Config
from util.dataset import scored_list
from util.metric import Scores

MARGIN = 0.05  # mIoU by which another reading of the pixels must win to be spoken of

log = logging.getLogger("teacher")


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
    dtype = run.precision(cfg.distill.precision or cfg.train.precision)

    found = evaluate.validate(teacher, pairs, cfg, dtype)
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
    mean, std = (torch.tensor(v, device=run.device()).view(1, 3, 1, 1) for v in (cfg.data.mean, cfg.data.std))
    for what, reread in {
        "red and blue exchanged": lambda x: x.flip(1),
        "pixels from 0 to 1": lambda x: (x * std + mean) / 255,
        "pixels from -1 to 1": lambda x: (x * std + mean) / 127.5 - 1,
        "pixels not divided by DATA.std": lambda x: x * std,
    }.items():
        other = Scores.of(evaluate.validate(_Otherwise(teacher, reread), pairs, cfg, dtype)).mIoU
        if other > scores.mIoU + MARGIN:
            _warn(
                f"with {what} the teacher's mIoU there is {other:.4f}: it seems to be trained with another "
                "normalisation than DATA.mean and DATA.std, which student and teacher share"
            )


def _warn(text: str) -> None:
    if run.is_main():
        log.warning(f"warning: {text}")


class _Otherwise(nn.Module):
    """The teacher behind another reading of its normalised images."""

    def __init__(self, net: PSPNet, reread: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.reread = net, reread

    def forward(self, image: Tensor) -> Output:
        return self.net(self.reread(image))
