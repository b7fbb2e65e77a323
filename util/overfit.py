"""When the student follows the teacher on the training images and no longer learns for others."""

from collections.abc import Mapping, Sequence

EPOCHS = 3  # without a better val mIoU
TERM = "aux_mse"  # the auxiliary output is close to the final one: matching it is the easy way to overfit


def warning(history: Sequence[Mapping[str, float]]) -> str | None:
    """One line the first time that train and val part while TERM still falls; `history`: lines of metrics.jsonl."""
    if not _parted(history) or any(_parted(history[:end]) for end in range(1, len(history))):
        return None
    best, last = _best(history), history[-1]
    return (
        f"val mIoU has not risen above {best['val_mIoU']:.4f} since epoch {best['epoch']}, while train mIoU rose to "
        f"{last['train_mIoU']:.4f} and {TERM} still fell: the student may be overfitting to the teacher; lower "
        f"DISTILL.weights.{TERM}, or let it end by DISTILL.schedules; best.pth is of epoch {best['epoch']}"
    )


def _best(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    return max(history, key=lambda line: line["val_mIoU"])


def _parted(history: Sequence[Mapping[str, float]]) -> bool:
    if not all({"val_mIoU", "train_mIoU", TERM} <= line.keys() for line in history):
        return False
    best, last = _best(history), history[-1]
    stale = last["epoch"] - best["epoch"] >= EPOCHS
    return stale and last["train_mIoU"] > best["train_mIoU"] and last[TERM] < best[TERM]
