"""Several processes on the CPU: what they learn, how they stop, and what a dying one leaves."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, python
from PIL import Image
from two_processes import by_one_and_two

from util import checkpoint

pytestmark = pytest.mark.xdist_group("processes")
FROZEN = """
import runpy, sys
from torch import nn
nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_processes_learn_what_one_does(tiny, command):
    """The same loss curve, with BatchNorm in eval mode and no dropout: the rest of a step knows of the whole batch.

    The scenes' void pixels make the shares' counts differ, so a mean of means would be another curve.
    """
    curves = by_one_and_two(tiny, command, FROZEN)
    assert len(curves[0]) == len(curves[1]) == 3 and curves[0][2]["loss"] < curves[0][0]["loss"]
    for one, two in zip(*curves, strict=True):
        for name in ("loss", "ce", "aux_ce", "kl", "aux_mse"):
            assert two[name] == pytest.approx(one[name], rel=1e-5), name


def launch(arguments, folder, processes=2):
    """Start processes by environment variables alone, as srun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "train_50_18.py", *arguments],
            cwd=ROOT,
            env={**common, "WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(folder / f"out{rank}").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(processes)
    ]


def wait_for(path: Path, pattern: str, seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and re.search(pattern, text := path.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"no {pattern} in {path}")


@pytest.mark.slow
def test_early_warning_and_requeue(tiny, command):
    """SLURM's SIGUSR1 to all tasks: each exits with 75, there is a checkpoint, and the same command ends the run."""
    options = command(tiny.out / "run", "TRAIN.batch_size", "4", "TRAIN.epochs", "5", "TRAIN.evaluate", "False")
    running = launch(options, tiny.out)
    assert "TRAIN.sync_bn needs CUDA" in wait_for(tiny.out / "out0", "epoch 1/5, step 1")
    for process in running:
        process.send_signal(signal.SIGUSR1)
    assert [process.wait(60) for process in running] == [75, 75], (tiny.out / "out0").read_text()
    newest = checkpoint.newest_first(tiny.out / "run")[0]  # after a step, or an epoch where it ended there
    assert checkpoint.read(newest)["processes"] == 2
    running = launch(options, tiny.out)
    assert [process.wait(120) for process in running] == [0, 0], (tiny.out / "out0").read_text()
    assert "resuming from" in (tiny.out / "out0").read_text()
    epochs = [json.loads(line)["epoch"] for line in (tiny.out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 6))


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_job(tiny, command):
    options = command(tiny.out / "run", "TRAIN.batch_size", "4", "TRAIN.epochs", "500", "TRAIN.evaluate", "False")
    running = launch(options, tiny.out)
    wait_for(tiny.out / "out0", "epoch 1/500, step 1")
    began = time.monotonic()
    running[1].kill()
    assert running[0].wait(60) == 2
    assert time.monotonic() - began < 60
    text = (tiny.out / "out0").read_text()
    assert "error: process 0 lost the others" in text and "Traceback" not in text


def test_a_process_with_an_error_ends_the_job_with_it(tiny, command):
    """Under torchrun, with its own words, at once; warnings come once."""
    label = np.asarray(Image.open(tiny.root / "train0.png")).copy()
    label[3, 3] = 9
    Image.fromarray(label).save(tiny.out / "bad.png")
    lines = [f"{tiny.root}/train{i}.jpg {tiny.root}/train{i}.png" for i in range(7)]
    (tiny.out / "list.txt").write_text("\n".join([*lines, f"{tiny.root}/train0.jpg {tiny.out}/bad.png"]))
    options = command(tiny.out / "run", "TRAIN.batch_size", "4", "DATA.train_list", str(tiny.out / "list.txt"))
    options += ["DATA.std", "[0.2, 0.2, 0.2]"]
    began = time.monotonic()
    result = python("train_50_18.py", *options, processes=2)
    assert result.returncode != 0 and time.monotonic() - began < 300  # a process that waits for the other: 30 minutes
    assert result.stderr.count("holds the value 9") == 1 and "error: label" in result.stderr
    assert result.stdout.count("is for pixels of 0 to 1") == 1
    assert "in util/" not in result.stderr  # no traceback of ours; torchrun adds its own summary
