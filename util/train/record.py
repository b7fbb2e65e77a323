"""What a training run prints and writes: console lines, metrics.jsonl, TensorBoard. Only rank 0 does."""

import json
import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import nn

from util import distributed
from util.config import Config
from util.data.decode import read_image
from util.data.lists import Pair, read_colors, read_names
from util.data.loader import TrainData
from util.errors import UserError, first_line, out_of_memory, worker_death
from util.evaluate import predict
from util.evaluate.protocol import protocol_for_validation
from util.files import replace_text
from util.train.resume import Progress

PICTURE_HEIGHT = 240  # pixels, of the pictures in TensorBoard
NEARLY_VOID = 0.05  # share of labelled positions below which a warning comes


class Recorder:
    """Opens the run's files in TRAIN.save_path.

    done: epochs that are finished; later lines of metrics.jsonl are cut, since those epochs are about to be repeated,
    and so are TensorBoard's points from `step` on.
    """

    def __init__(self, cfg: Config, done: int, val: list[Pair], step: int):
        self.cfg, self.log, self.folder = cfg, logging.getLogger("train"), Path(cfg.train.save_path)
        self.no_bar = not (distributed.is_main() and sys.stderr.isatty())
        self.colors = read_colors(cfg.data)
        self.names = read_names(cfg.data)
        self.examples = [val[i] for i in np.linspace(0, len(val) - 1, min(cfg.train.pictures, len(val))).astype(int)]
        if not distributed.is_main():
            return
        self.metrics = self.folder / "metrics.jsonl"
        try:
            if self.metrics.exists():
                replace_text(self.metrics, "".join(line for line in self.metrics.open() if _epoch(line) <= done))
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} (TRAIN.save_path): {error.strerror}") from None

    def start(self, data: TrainData, dtype: torch.dtype, seed: int, done: int) -> None:
        more = f" and {data.unlabelled} unlabelled" if data.unlabelled else ""
        self.log.info(
            f"training on {distributed.device().type} in {dtype}, PSPNet-{self.cfg.train.architecture}, "
            f"{data.labelled} images{more}, seed {seed}, {done} of {self.cfg.train.epochs} epochs done, writing to "
            f"{self.folder}"
        )

    def steps(self, step: int, means: dict[str, float], lr: float, rate: float, where: str) -> None:
        """The running means of an epoch, every print_freq steps; rate in images a second."""
        if not distributed.is_main():
            return
        if self.no_bar:
            terms = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            self.log.info(f"{where}: {terms}, lr {lr:.2e}, {rate:.4g} images/s")
        for name, value in {**means, "lr": lr, "images_per_second": rate}.items():
            self.writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, line: dict[str, float], step: int) -> None:
        """Add an epoch's line to metrics.jsonl and TensorBoard."""
        if not distributed.is_main():
            return
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
            for name, value in line.items():
                if name != "epoch":
                    self.writer.add_scalar(f"epoch/{name}", value, step)  # by steps, so that a resume can cut
            self.writer.flush()
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} ({error.strerror}); make room, then start again") from None
        train = f", train mIoU {100 * line['train_mIoU']:.2f} %" if "train_mIoU" in line else ""
        val = ""
        if "val_mIoU" in line:
            val = f", val mIoU {100 * line['val_mIoU']:.2f} %, gap {100 * line['gap']:.2f} points"
        self.log.info(f"epoch {line['epoch']}: loss {line['loss']:.4f}{train}{val}")
        shares = {name.removeprefix("share_"): value for name, value in line.items() if name.startswith("share_")}
        if len(shares) > 2:  # more than plain training's two terms
            text = ", ".join(f"{name} {100 * value:.0f} %" for name, value in shares.items())
            self.log.info(f"epoch {line['epoch']}: shares of the gradient at the student's shared layer: {text}")

    def labels_seen(self, matrix: torch.Tensor, steps: int) -> None:
        """Warn, after the first epoch, of classes without a pixel and of labels that are nearly all void."""
        train = self.cfg.train
        positions = steps * train.batch_size * ((train.train_h - 1) // 8 + 1) * ((train.train_w - 1) // 8 + 1)
        pixels = matrix.sum(1).tolist()
        if absent := [name for name, count in zip(self.names, pixels, strict=True) if not count]:
            self.log.warning(f"warning: in no label of this epoch's crops: {', '.join(absent)}")
        if sum(pixels) < NEARLY_VOID * positions:
            self.log.warning(
                f"warning: {100 - 100 * sum(pixels) / positions:.1f} % of this epoch's crops is void "
                f"(TRAIN.ignore_label {train.ignore_label}) or padding; DATA.label_map renames values"
            )

    def pictures(self, step: int, net: nn.Module) -> None:
        """Of a few val images: image, truth and prediction side by side. What prevents them is a warning."""
        if not distributed.is_main():
            return
        try:
            self._draw(step, net)
        except (UserError, RuntimeError, MemoryError) as error:
            if worker_death(error) or not (isinstance(error, UserError) or out_of_memory(error)):
                raise
            self.log.warning(f"warning: no pictures of val images (TRAIN.pictures): {first_line(error)}")

    def _draw(self, step: int, net: nn.Module) -> None:
        dtype = distributed.precision(self.cfg.train.precision)
        predictor = predict.Predictor(net, self.cfg, protocol_for_validation(self.cfg), dtype)
        for number, prediction, label in predict.predictions(predictor, self.examples, range(len(self.examples))):
            strip = [
                read_image(self.examples[number].image, self.cfg.data.image_max),
                self.colors[label.numpy()],
                self.colors[prediction.cpu().numpy()],
            ]
            picture = np.concatenate(strip, 1)
            width = max(round(picture.shape[1] * PICTURE_HEIGHT / picture.shape[0]), 1)
            picture = cv2.resize(picture, (width, PICTURE_HEIGHT), interpolation=cv2.INTER_AREA)
            self.writer.add_image(f"val/{number}", picture, step, dataformats="HWC")

    def end(self, progress: Progress, done: int) -> None:
        """done: epochs that were finished when the run was started."""
        epochs = self.cfg.train.epochs
        if done == epochs:
            self.log.info(f"{self.folder} holds a finished run: nothing was left to do")
        if progress.epoch < epochs:
            self.log.info(
                f"ended after epoch {progress.epoch}: no better val mIoU in {self.cfg.train.patience} epochs "
                f"(TRAIN.patience); the best one, {100 * progress.best:.2f} % of epoch {progress.best_epoch}, is in "
                f"{self.folder / 'best.pth'}"
            )
        self.close()

    def close(self) -> None:
        if distributed.is_main():
            self.writer.close()


def _epoch(line: str) -> float:
    """The epoch of a line of metrics.jsonl; infinity for one that a kill cut short."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
