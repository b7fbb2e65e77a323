"""The long form of what training/test_faults.py and test_resume.py try: many kills, and file systems that fail.

    make faults

Not part of make test: about fourteen minutes. Prints kills survived of kills tried.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_resume import same, start

from util import checkpoint

KILLS, KILLS_A_RUN = 60, 6


def kill(process: subprocess.Popen, folder: Path, rng: random.Random) -> str | None:
    """Kill a run at a random moment of a random phase -> the phase, or None when the run ended before.

    saving and validating: up to two such moments pass first. stopping: it was told to stop a moment before, and
    may have done so.
    """
    phase, passing = rng.choice(["at any time", "saving", "validating", "stopping"]), rng.randrange(3)
    for line in process.stdout:
        if "training on" in line or line.startswith("error"):
            break
    # An epoch's state is saved before its validation: when it appears, validation begins.
    pattern = {"saving": ".*.pth.tmp", "validating": "interrupted.pth"}.get(phase)
    seen = {_stamp(path) for path in folder.glob(pattern)} if pattern else set()
    deadline = time.monotonic() + (60 if pattern else rng.uniform(0, 6))
    while process.poll() is None and time.monotonic() < deadline and passing >= 0:
        new = {_stamp(path) for path in folder.glob(pattern)} - seen - {None} if pattern else set()
        passing -= bool(new)
        seen |= new
        time.sleep(0.001)
    if phase == "stopping":
        process.send_signal(signal.SIGTERM)
    time.sleep(rng.uniform(0, 0.15))
    if process.poll() is not None:
        # SIGTERM is an ordinary kill before a run's first step and after its last one
        return {75: "stopped before the kill", -signal.SIGTERM: phase}.get(process.returncode)
    process.kill()
    return phase


def _stamp(path: Path) -> int | None:
    """What tells a file from its successor of the same name."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def tried(phases: Counter) -> int:
    return phases.total() - phases["stopped before the kill"]


def test_kills(tiny, command, whole):
    rng, phases, runs, moments = random.Random(1), Counter(), 0, []
    began = time.monotonic()
    while tried(phases) < KILLS:
        folder, kills, out = tiny.out / f"run{runs}", 0, ""
        while True:
            process = start(command(folder, "TRAIN.workers", str(rng.randrange(2))))
            phase = kill(process, folder, rng) if kills < KILLS_A_RUN else None
            out, _ = process.communicate(timeout=300)
            if phase is None:
                break
            phases[phase] += 1
            kills += 1
            lines = folder / "metrics.jsonl"
            moments.append(len(lines.read_text().splitlines()) if lines.exists() else 0)
        assert process.returncode == 0, out
        same(whole, folder)
        assert not list(folder.glob(".*.tmp")) and not list(folder.glob("*.corrupt"))
        runs += 1
        print(f"run {runs}: {kills} kills, equal to the untouched run", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{tried(phases)} kills survived of {tried(phases)} tried, in {runs} runs and {minutes:.1f} minutes:")
    print(f"{dict(phases)}; killed in epoch {dict(sorted(Counter(done + 1 for done in moments).items()))}")
    assert runs >= KILLS // KILLS_A_RUN


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(megabytes, *options) mounts a file system of that size, or changes it; it needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(megabytes: int, *options: str):
        change = ["remount"] if os.path.ismount(folder) else []
        what = ",".join([*change, f"size={megabytes}m", *options])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", what, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
        return folder

    yield mount
    with contextlib.suppress(OSError):
        subprocess.run(["umount", "--lazy", folder], capture_output=True)  # TensorBoard may hold a file


def test_disk_that_is_full(tmp_path, command, whole, script, fails, small_disk):
    """Room for one checkpoint, but not for a second one beside it."""
    size = (whole / "train_epoch_3.pth").stat().st_size
    disk = small_disk(int(1.5 * size / 2**20))
    quiet = ["TRAIN.evaluate", "False", "TRAIN.pictures", "0", "TRAIN.keep", "1"]
    line = fails("train_50_18.py", *command(disk / "run", *quiet))
    assert "train_epoch_2.pth (No space left on device)" in line, line
    assert [path.name for path in (disk / "run").glob("*.pth")] == ["train_epoch_1.pth"]
    small_disk(int(6 * size / 2**20))
    assert script("train_50_18.py", *command(disk / "run")).status == 0
    a, b = (checkpoint.read(folder / "train_epoch_3.pth")["state_dict"] for folder in (whole, disk / "run"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    print(line)


def test_folder_that_became_read_only(command, script, fails, small_disk):
    disk = small_disk(600)
    assert script("train_50_18.py", *command(disk / "run", "TRAIN.epochs", "1")).status == 0
    small_disk(600, "ro")
    line = fails("train_50_18.py", *command(disk / "run", "TRAIN.epochs", "1"))
    assert "cannot make or write" in line and "Read-only file system" in line
    print(line)


def test_disk_full_in_testing(tiny, command, whole, fails, small_disk):
    disk = small_disk(1)
    (disk / "filler").write_bytes(bytes((1 << 20) - 20_000))
    options = ["TEST.model_path", str(whole / "train_epoch_3.pth"), "TEST.save_folder", str(disk / "result")]
    line = fails("test_50_18.py", *command(tiny.out), *options)
    assert "cannot write" in line and not (disk / "result" / "metrics.json").exists()
    print(line)
