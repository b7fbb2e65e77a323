"""What a network costs: parameters, GFLOP and milliseconds for one image."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tool.report.runs import Run
from util import distributed, network
from util.data.decode import read_image
from util.evaluate.protocol import resize


def input_size(first: Run, image: Path) -> tuple[int, int]:
    """(height, width) at which `image` is tested at scale 1."""
    picture = read_image(image, first.data.image_max).astype("float32")
    return resize(picture, 1.0, first.metrics["protocol"]["base_size"]).shape[:2]


def measure(runs: list[Run], size: tuple[int, int], repeats: int) -> list[dict[str, Any] | None]:
    """Parameters, GFLOP (a multiply-add is two) and median ms of a forward pass, for each run.

    One image of `size`, without flip and without the auxiliary head, as in testing. Networks of the
    same structure are timed once, alternately with the others. repeats 0 leaves the time None; a
    run whose checkpoint does not exist gives None.
    """
    device, dtype = distributed.device(), distributed.precision("auto")
    image = torch.randn(1, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    keys, nets, counted = [], {}, {}
    for entry in runs:
        if not entry.checkpoint.is_file():
            keys.append(None)
            continue
        net = network.load(str(entry.checkpoint), entry.metrics["network"]["layers"], entry.data.classes, aux=False)
        keys.append((net.layers, net.stem))
        if keys[-1] not in nets:
            parameters = sum(parameter.numel() for parameter in net.parameters())
            net.to(device).eval()
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                net(image)  # before freezing: the counter does not know fused convolutions
            counted[keys[-1]] = {"parameters": parameters, "GFLOP": counter.get_total_flops() / 1e9}
            nets[keys[-1]] = net.freeze(dtype)
    times = {key: [] for key in nets}
    for repeat in range(repeats + 1 if repeats else 0):  # the first one warms up
        for key, net in nets.items():
            start = time.perf_counter()
            with torch.inference_mode(), distributed.autocast(dtype):
                net(image.to(dtype)).logits.float().sum().item()  # item() waits for the GPU
            if repeat:
                times[key].append(1000 * (time.perf_counter() - start))
    return [key and {**counted[key], "ms": statistics.median(times[key]) if repeats else None} for key in keys]


def setting(size: tuple[int, int]) -> str:
    """The conditions of `measure`, in words."""
    device = f"CPU ({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})"
    if distributed.device().type == "cuda":
        device = torch.cuda.get_device_name()
    return f"one {size[1]}x{size[0]} image on the {device}, {str(distributed.precision('auto'))[6:]}"
