"""Seconds from `python train_18.py` to its first finished step, above importing torch and building the network.

    python benchmark/startup.py [--images 16] [--crop 473] [--batch 2] [--workers 1] [--repeats 3] [--json FILE]

Fresh processes take turns: the script on generated pictures, until it has logged step 1; and, as the floor, one that
imports torch and builds PSPNet18. Both run with the files in the disk cache.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import measure, pictures  # noqa: E402
from util.errors import UserError  # noqa: E402

FLOOR = "import torch; from model.pspnet import PSPNet; PSPNet(18, 21)"


def first_step(options: Namespace, folder: Path) -> float:
    """Start the script anew -> seconds until it has logged its first step; then it is told to stop."""
    overrides = {
        "DATA.data_root": folder, "DATA.train_list": folder / "list.txt", "DATA.val_list": folder / "list.txt",
        "TRAIN.pretrained": "none", "TRAIN.train_h": options.crop, "TRAIN.train_w": options.crop,
        "TRAIN.batch_size": options.batch, "TRAIN.workers": options.workers, "TRAIN.print_freq": 1,
        "TRAIN.pictures": 0, "TRAIN.save_path": tempfile.mkdtemp(dir=folder),
    }  # fmt: skip
    pairs = [str(part) for item in overrides.items() for part in item]
    command = [sys.executable, "train_18.py", *pairs]
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=pictures.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if ", step 1:" in line:
                seconds = time.perf_counter() - start
                process.terminate()
                process.communicate()
                return seconds
    raise UserError(f"train_18.py ended without a step: {lines[-1].strip() if lines else 'it said nothing'}")


def build(_options: Namespace, _folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", FLOOR], cwd=pictures.ROOT, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = measure.parser(__doc__, images=16, crop=473, batch=2, workers=1, repeats=3)
    options = parser.parse_args()
    works = {"script": first_step, "build": build}
    times = {name: [] for name in works}
    with tempfile.TemporaryDirectory() as name:
        pictures.make(Path(name), options.images)
        for turn in range(options.repeats + 1):  # the first turn fills the disk cache
            for kind, work in works.items():
                seconds = work(options, Path(name))
                if turn:
                    times[kind].append(seconds)
    above = statistics.median(s - b for s, b in zip(*times.values(), strict=True))
    rows = measure.summary(times, "build")
    print(
        f"first step after {rows['script']['seconds']:.2f} s; torch and network {rows['build']['seconds']:.2f} s; "
        f"{above:.2f} s above"
    )
    measure.report(options, {"ways": rows, "above": above})


if __name__ == "__main__":
    measure.main(main)
