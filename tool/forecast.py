"""How long tool/pipeline.py will take on this machine, measured before it starts, and what is left of it."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch

from util import distributed, network
from util.config import Config
from util.data.lists import read_list
from util.train.step import build_optimizer

REPEATS = 2  # timed; one before them warms up


def least(work: Callable[[], object]) -> float:
    """Seconds that `work` takes when nothing disturbs it: the least of REPEATS."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def passes(cfg: Config) -> tuple[float, float]:
    """Seconds of a training step of cfg's network on random crops, and of the forward pass in it; without a teacher."""
    train, device, dtype = cfg.train, distributed.device(), distributed.precision(cfg.train.precision)
    layout = distributed.training_layout(dtype)
    net = network.build(train, cfg.data).to(device, memory_format=layout)
    optimizer = build_optimizer(train, net)
    image = torch.randn(train.batch_size, 3, train.train_h, train.train_w, device=device)
    image = image.to(memory_format=layout)

    def forward():
        with distributed.autocast(dtype):
            return net(image)

    def step():
        output = forward()
        (output.logits.float().square().mean() + output.aux.float().square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step_seconds = least(step)
    with torch.no_grad():
        return step_seconds, least(forward)


def measure(configs: Mapping[str, Config]) -> dict[str, float]:
    """Expected seconds of each script, by name and in their order; configs: of teacher, student and distilled student
    by the scripts' numbers. A forward pass in testing is reckoned by its pixels from one in training."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import train_18, test_18"], check=True)
    starting = time.perf_counter() - start
    (teacher, teacher_forward), (student, student_forward) = (passes(configs[depth]) for depth in ("50", "18"))
    steps = {"50": teacher, "18": student, "50_18": student + teacher_forward}
    costs = {}
    for depth, cfg in configs.items():
        train, test = cfg.train, cfg.test
        images, tested = (
            len(read_list(path, "list", cfg.data.data_root)) for path in (cfg.data.train_list, test.test_list)
        )
        costs[f"train_{depth}.py"] = starting + train.epochs * (images // train.batch_size) * steps[depth]
        pixels = tested * (1 + test.flip) * sum(scale**2 for scale in test.scales) * test.base_size**2
        forward = (teacher_forward if depth == "50" else student_forward) / train.batch_size
        costs[f"test_{depth}.py"] = starting + forward * pixels / (train.train_h * train.train_w)
    return costs


class Progress:
    """What is done of all scripts and how long the rest takes, corrected by how long the done part took.

    costs: expected seconds of each script that is still to run; without any, nothing is said.
    """

    def __init__(self, costs: Mapping[str, float]):
        self.left, self.done, self.start, self.said = dict(costs), 0.0, time.monotonic(), None

    def skip(self, *scripts: str) -> None:
        for script in scripts:
            self.left.pop(script, None)

    def finish(self, script: str) -> None:
        self.done += self.left.pop(script, 0)

    def say(self, script: str, share: float = 0.0) -> None:
        """Print a line when `script` begins, and whenever more of it is done; share: from 0 to 1."""
        if (script, share) == self.said or not self.left:
            return
        self.said = script, share
        now, total = self.done + share * self.left[script], self.done + sum(self.left.values())
        minutes = (time.monotonic() - self.start) / 60
        rest = (total - now) * (minutes / now if now else 1 / 60)
        clear = "\r\033[K" if sys.stdout.isatty() else ""  # of the script's own bar
        share_of_all = f"{100 * now / total:.0f} % of all done in {minutes:.1f} minutes"
        print(f"{clear}== {script}: {share_of_all}, about {rest:.1f} left", flush=True)
