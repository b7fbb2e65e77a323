"""Weights and images that are a function of a seed alone, on any machine and version: numpy's PCG64, no torch."""

import numpy as np
import torch

SIZES = [(30, 40), (90, 140), (140, 90), (66, 66), (57, 65), (58, 66), (71, 33)]  # height, width
CLASSES, CROP, BASE_SIZE = 5, (57, 65), 66
SCALES = {"single": [1.0], "multi": [0.5, 0.75, 1.25, 1.5, 1.75]}


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """A state dict of `shapes` that keeps activations near unit size, so that every class wins somewhere."""
    state = {}
    for index, key in enumerate(sorted(shapes)):
        rng, shape = np.random.default_rng((seed, index)), shapes[key]
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1)
            continue
        if len(shape) == 4:
            value = rng.normal(0, np.sqrt(2 / (shape[1] * shape[2] * shape[3])), shape)
            if key == "cls.4.weight":
                value *= 8  # logits apart
        elif key.endswith("running_var"):
            value = rng.uniform(0.8, 1.2, shape)
        elif key.endswith("running_mean"):
            value = rng.normal(0, 0.1, shape)
        elif key.endswith("bias"):
            value = rng.normal(0, 0.05, shape)
        else:  # BatchNorm's scale: residual branches small
            value = rng.uniform(0.9, 1.1, shape) * (0.3 if ".bn3." in key or ".bn2." in key else 1)
        state[key] = torch.from_numpy(value.astype(np.float32))
    return state


def image(index: int) -> np.ndarray:
    """(H, W, 3) uint8: smooth random colours."""
    height, width = SIZES[index]
    rng = np.random.default_rng((99, index))
    y, x = np.mgrid[:height, :width] / 16.0
    waves = [sum(np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-3, 3, (4, 3))) for _ in range(3)]
    return np.clip(128 + 40 * np.stack(waves, 2) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def label(index: int) -> np.ndarray:
    """(H, W) uint8 with classes in blocks and some void, 255."""
    rng, (height, width) = np.random.default_rng((98, index)), SIZES[index]
    blocks = rng.choice([*range(CLASSES), 255], (height // 12 + 1, width // 12 + 1))
    return blocks.repeat(12, 0).repeat(12, 1)[:height, :width].astype(np.uint8)
