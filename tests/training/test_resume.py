"""Stopping and going on: whatever ends a run, the same command leads to the end of one that nothing ended."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from util import checkpoint
from util.stop import Interrupt
from util.train.step import Stepper


def start(arguments, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "train_50_18.py", *arguments],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def same(first, second, epoch=3):
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    a, b = (checkpoint.read(folder / f"train_epoch_{epoch}.pth") for folder in (first, second))
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    momenta = [[s["momentum_buffer"] for s in c["optimizer"]["state"].values()] for c in (a, b)]
    assert all(torch.equal(x, y) for x, y in zip(*momenta, strict=True))
    assert a["best"] == b["best"]


def test_signals_in_the_middle_of_an_epoch(tiny, command, whole, script, monkeypatch):
    """Each stop exits with 75 and leaves a checkpoint; another number of workers goes on from it."""
    parts = tiny.out / "parts"
    for stop, number in ((2, signal.SIGTERM), (5, signal.SIGUSR1), (9, signal.SIGINT)):
        steps = []

        def count(self, parts, step, seed, real=Stepper.step, stop=stop, number=number, steps=steps):
            real(self, parts, step, seed)
            steps.append(step)
            if step == stop:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            patch.setattr(Stepper, "step", count)
            result = script("train_50_18.py", *command(parts, "TRAIN.workers", str(stop % 2)))
        assert result.status == 75 and result.err == "", result
        assert steps[-1] == stop and (parts / "interrupted.pth").is_file()
    assert script("train_50_18.py", *command(parts)).status == 0
    assert not (parts / "interrupted.pth").exists()
    same(whole, parts)


def test_signal_in_the_last_step_of_an_epoch(tiny, script, monkeypatch):
    """Here every step is an epoch's last; save_freq leaves the first epoch without a checkpoint of its own."""
    options = ["--config", tiny.path, *"TRAIN.epochs 3 TRAIN.batch_size 8 TRAIN.save_freq 2".split()]
    options += "TRAIN.evaluate False TRAIN.pictures 0 TRAIN.save_path".split()

    def step(self, parts, number, seed, real=Stepper.step):
        real(self, parts, number, seed)
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    assert script("train_18.py", *options, tiny.out / "whole").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        assert script("train_18.py", *options, tiny.out / "parts").status == 75
    assert len((tiny.out / "parts" / "metrics.jsonl").read_text().splitlines()) == 1
    assert script("train_18.py", *options, tiny.out / "parts").status == 0
    same(tiny.out / "whole", tiny.out / "parts")


def test_killed_at_random_moments(tiny, command, whole, script):
    """The short form of tests/faults.py."""
    parts, rng = tiny.out / "parts", random.Random(0)
    for _ in range(2):
        process = start(command(parts))
        for line in process.stdout:
            if "training on" in line:
                break
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
    assert script("train_50_18.py", *command(parts)).status == 0
    same(whole, parts)


def test_corrupt_checkpoint_is_set_aside(tiny, command, whole, script):
    parts = tiny.out / "parts"
    assert script("train_50_18.py", *command(parts)).status == 0
    newest = parts / "train_epoch_3.pth"
    newest.write_bytes(newest.read_bytes()[:50_000])
    assert script("train_50_18.py", *command(parts)).status == 0
    assert (parts / "train_epoch_3.pth.corrupt").is_file()
    same(whole, parts)


def test_changed_settings_are_named(tiny, command, fails, script):
    folder = tiny.out / "run"
    assert script("train_50_18.py", *command(folder, "TRAIN.epochs", "1")).status == 0
    line = fails("train_50_18.py", *command(folder, "TRAIN.epochs", "1", "TRAIN.base_lr", "0.5"))
    assert "TRAIN.base_lr (was 0.01, is 0.5)" in line
    line = fails("train_50_18.py", *command(folder, "TRAIN.epochs", "2", "DISTILL.weights.kl", "3.0"))
    assert "TRAIN.epochs (was 1, is 2)" in line and "DISTILL.weights.kl (was 1.0, is 3.0)" in line
    free = "TRAIN.epochs 1 TRAIN.workers 1 TRAIN.print_freq 7 TRAIN.save_freq 4 TRAIN.keep 9 TRAIN.pictures 0".split()
    assert script("train_50_18.py", *command(folder, *free)).status == 0


def test_a_key_that_a_checkpoint_does_not_know_had_its_default(tiny, command, fails, script):
    """A key that a later version adds must not make every older run impossible to resume."""
    folder = tiny.out / "run"
    assert script("train_50_18.py", *command(folder, "TRAIN.epochs", "1")).status == 0
    path = folder / "train_epoch_1.pth"
    content = checkpoint.read(path)
    for key in ("TRAIN.power", "DISTILL.mask", "DISTILL.weights.aux_mse"):
        del content["settings"][key]
    torch.save(content, path)
    assert script("train_50_18.py", *command(folder, "TRAIN.epochs", "1")).status == 0
    line = fails("train_50_18.py", *command(folder, "TRAIN.epochs", "1", "TRAIN.power", "2.0"))
    assert "TRAIN.power (was 0.9, is 2.0)" in line


def test_a_list_may_lose_images_but_not_change(tiny, command, fails, script, caplog):
    """As the error of a damaged image says: take it out of the list, and resume."""
    lines = (tiny.root / "train.txt").read_text().splitlines(keepends=True)
    (tiny.out / "list.txt").write_text("".join(lines))
    options = ["DATA.train_list", str(tiny.out / "list.txt"), "TRAIN.batch_size", "3", "TRAIN.evaluate", "False"]
    run = command(tiny.out / "run", *options)
    assert script("train_50_18.py", *run).status == 0
    (tiny.out / "run" / "train_epoch_3.pth").unlink()
    (tiny.out / "list.txt").write_text("".join(lines[1:]))
    assert script("train_50_18.py", *run).status == 0
    assert "1 images are no longer in DATA.train_list" in caplog.text
    (tiny.out / "run" / "train_epoch_3.pth").unlink()
    (tiny.out / "list.txt").write_text("".join([*lines[2:], "val0.jpg val0.png\n"]))
    assert "content of DATA.train_list" in fails("train_50_18.py", *run)


def test_a_list_without_labels_may_lose_images_too(tiny, command, script, caplog):
    (tiny.out / "list.txt").write_text("".join(f"train{i}.jpg\n" for i in range(8)))
    run = command(tiny.out / "run", "DATA.train_list", "", "DATA.unlabelled_list", str(tiny.out / "list.txt"))
    run += "DISTILL.weights.ce 0 DISTILL.weights.aux_ce 0 TRAIN.batch_size 3 TRAIN.evaluate False".split()
    assert script("train_50_18.py", *run).status == 0
    (tiny.out / "run" / "train_epoch_3.pth").unlink()
    (tiny.out / "list.txt").write_text("".join(f"train{i}.jpg\n" for i in range(7)))
    assert script("train_50_18.py", *run).status == 0
    assert "1 images are no longer in DATA.unlabelled_list" in caplog.text


def test_another_validation_starts_the_best_score_anew(tiny, command, script, caplog):
    """best.pth and TRAIN.patience must not compare scores of other images or sizes."""
    folder = tiny.out / "run"
    for options in (["TRAIN.epochs", "2"], ["TRAIN.epochs", "2", "TEST.base_size", "40"]):
        assert script("train_50_18.py", *command(folder, *options, "TRAIN.evaluate", "True")).status == 0
        (folder / "train_epoch_2.pth").unlink()
    content = checkpoint.read(folder / "best.pth")
    assert "TEST.base_size has changed" in caplog.text
    assert content["validation"]["base_size"] == 40 and content["epoch"] == content["best_epoch"] == 2


def test_starting_anew_among_later_checkpoints_is_refused(tiny, command, fails, script):
    folder = tiny.out / "run"
    assert script("train_50_18.py", *command(folder)).status == 0
    line = fails("train_50_18.py", *command(folder, "TRAIN.resume", ""))
    assert "train_epoch_3.pth is from a later epoch" in line and "TRAIN.save_path" in line
    assert (folder / "train_epoch_3.pth").is_file() and len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_one_folder_one_run(tiny, command, fails, script):
    folder = tiny.out / "run"
    process = start(command(folder))
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    try:
        assert f"process {process.pid}" in fails("train_50_18.py", *command(folder))
    finally:
        process.kill()
        process.communicate()
    assert script("train_50_18.py", *command(folder)).status == 0  # a dead run leaves no lock behind


def test_second_ctrl_c_does_not_wait():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.stop_requested(sync=True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_metrics_hold_no_timings(whole):
    for line in (whole / "metrics.jsonl").read_text().splitlines():
        assert all(np.isfinite(value) for value in json.loads(line).values())
        assert not {"seconds", "time", "images_per_second"} & set(json.loads(line))


def test_a_worker_that_dies(tiny, command):
    """One error, no hang; the same command goes on."""
    process = start(command(tiny.out / "run", "TRAIN.workers", "1", "TRAIN.epochs", "200"))
    for line in process.stdout:
        if "epoch 1:" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "train_50_18.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    assert "error: a process that loads images died" in out and "Traceback" not in out
