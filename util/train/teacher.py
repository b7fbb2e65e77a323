"""The frozen teacher, optionally cached, and a sanity check of it before training."""

import contextlib
import logging
from collections.abc import Iterable, Iterator

import torch

from model.distill.classes import Averaged, Mapped, output_dtype
from model.pspnet import Output, PSPNet
from util import distributed
from util.config import Config
from util.data.batch import Batch
from util.data.lists import Pair
from util.evaluate import predict
from util.evaluate.metric import Scores, confusion_matrix
from util.files import BackgroundWriter
from util.train.compilation import Compiled
from util.train.teacher_cache import TeacherCache

log = logging.getLogger("teacher")


class Teacher:
    """Outputs of the frozen `net` for a batch: computed without gradients, or read from DISTILL.cache.

    layers: that the losses read beside logits and aux; the outputs hold no others, which at a batch of 16 crops of
    473 would keep a gigabyte alive during the student's step.
    """

    def __init__(self, cfg: Config, net: PSPNet | Mapped | Averaged, layers: Iterable[str] = ()):
        self.net, self.forward = net, net
        self.dtype, self.device = output_dtype(net), distributed.device()
        scores = [name for name in ("logits", "aux") if name in net.channels()]
        self.layers = {*layers} - {"logits", "aux"}
        self.cache = TeacherCache(cfg, net, sorted({*scores, *layers})) if cfg.distill.cache else None
        self.writer = BackgroundWriter()  # not the cache's: that is pickled for workers that are not forked
        self.on_crops: torch.Tensor | None = None  # its confusion matrix, while it is counted
        if scores:
            self.on_crops = torch.zeros(cfg.data.classes, cfg.data.classes, dtype=torch.int64, device=self.device)

    def compile(self) -> None:
        self.forward = Compiled(self.net)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        """Logits and aux (N, classes, ...) and `layers`, in the net's dtype; aux is None without such a head."""
        output = self._outputs(batch)
        if self.on_crops is not None:
            labels = batch.labels[1].label
            self.on_crops += confusion_matrix(output.logits.argmax(1), labels, len(self.on_crops))
        return output

    def _outputs(self, batch: Batch) -> Output:
        if batch.cached and batch.cached.layers is not None:
            return self.cache.decode(batch.cached.layers)
        with distributed.autocast(self.dtype):
            output = self.forward(batch.image.to(self.dtype))
        output = output._replace(features={name: output.features[name] for name in self.layers})
        if batch.cached is None:
            return output
        layers = self.cache.encode(output)
        self.writer.submit(self.cache.write, batch.cached, layers)
        return self.cache.decode(layers)  # what later runs will read

    @contextlib.contextmanager
    def writing(self, crops: int) -> Iterator[None]:
        """While entered, a run of `crops` crops may use the cache. Raises UserError when the disk has no room."""
        if self.cache is None:
            yield
            return
        if distributed.is_main():
            self.cache.open(crops)
        try:
            yield
        finally:
            self.flush()

    def flush(self) -> None:
        """Wait until the cache is written."""
        self.writer.flush()

    def report_crops(self) -> None:
        """Log its scores on the labelled crops of a process's first epoch, at stride 8, and count no further ones.

        Where they are below what the student comes to on such crops, the labels may be the better teacher. They may be
        far below the scores on whole images, since a small crop shows little around an object.
        """
        if self.on_crops is None:
            return
        matrix = distributed.all_reduce(self.on_crops)
        if matrix.any():  # a resumed epoch may have lacked its validation alone
            log.info(f"the teacher on this epoch's crops: {_in_words(Scores.of(matrix))}")
            self.on_crops = None

    def check(self, cfg: Config, val: list[Pair]) -> None:
        """Score the teacher on DISTILL.check_images of `val`; warn when naming the most frequent class is better."""
        count = min(cfg.distill.check_images, len(val))
        if not count or "logits" not in self.net.channels():
            return
        pairs = [val[i * len(val) // count] for i in range(count)]
        matrix = predict.validate(self.net, pairs, cfg, self.dtype)
        scores = Scores.of(matrix)
        log.info(f"the teacher on {count} val images: {_in_words(scores)}")
        chance = (matrix.sum(1).max() / matrix.sum().clamp(min=1)).item()
        if scores.allAcc <= chance < 1 and matrix.any() and distributed.is_main():
            log.warning(
                f"warning: the teacher is no better than chance: naming the most frequent class everywhere has a pixel "
                f"accuracy of {100 * chance:.2f} %; is {cfg.distill.teacher_path} trained, on these classes in this "
                "order, and with DATA.mean and DATA.std?"
            )


def _in_words(scores: Scores) -> str:
    return f"mIoU {100 * scores.mIoU:.2f} %, pixel accuracy {100 * scores.allAcc:.2f} %"
