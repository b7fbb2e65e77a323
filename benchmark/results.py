"""Train and test every method on every seed (plan.py, animals.py), and record the scores.

    python benchmark/results.py camvid --data-root FOLDER [--out exp/results/camvid]
    python benchmark/results.py shapes [--out exp/results/shapes] [--seeds 10,11] [--jobs 8]
    python benchmark/results.py animals [--jobs 12] [--pretrained FOLDER --weights TEXT]

Scores go to benchmark/results/DATASET.json, pixel counts of each image to DATASET.npz. What is
recorded there is not run again, on any machine; what was stopped goes on. A recorded run whose
settings are no longer the plan's is named and kept; --drop takes it out, so that it runs anew.
benchmark/evidence.py makes the tables.

The teacher's outputs are cached (DISTILL.cache), so the first distillation of a seed takes longer
than the others. On animals tuning comes first (animals_tuning.json), on images held out of it, and
the final runs take what it chose: PROTOCOL.md has the rules.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import plan
from benchmark.animals_runs import Animals, Records
from benchmark.experiments import Experiments
from benchmark.plan import Task
from benchmark.record import RunRecord, locked
from util.run import errors_in_one_line

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmark" / "results"
USER_ERROR = 2  # exit status of a script that ends in one line, such as for a loss that is not finite


def make(experiments: Experiments, task: Task) -> tuple[dict[str, Any], np.ndarray]:
    experiments.run(task).perform()
    return experiments.entry(task)


def perform(
    experiments: Experiments, record: RunRecord | Records, planned: Callable[[], Sequence[Task]], jobs: int
) -> None:
    """Up to `jobs` runs at a time, in the order of planned(), which is asked anew after each run.

    A student waits for its teacher, which is trained first where its checkpoint is not there, recorded
    or not. After a failure no more are started, unless the record takes it for a result.
    """
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // jobs, 1)))
    begun: set[tuple[str, int]] = set()
    ended: set[tuple[str, int]] = set()
    running: dict[Future, Task] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                for task in planned():
                    if task.run == "pspnet50_18":
                        teacher = experiments.teacher(task)
                        task = task if (teacher.method, teacher.seed) in ended else teacher
                    if len(running) < jobs and (task.method, task.seed) not in begun:
                        begun.add((task.method, task.seed))
                        experiments.prepare(task)
                        running[pool.submit(make, experiments, task)] = task
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    try:
                        entry, pixels = future.result()
                    except SystemExit as stop:
                        if stop.code != USER_ERROR or not record.failed(task.method, task.seed):
                            raise
                        print(f"{task.method}, seed {task.seed} failed, which counts as 0", flush=True)
                        continue
                    ended.add((task.method, task.seed))
                    if not record.find(task.method, task.seed):
                        record.add(entry, pixels)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=[*plan.SEEDS, "animals"])
    parser.add_argument("--data-root", help="folder of CamVid's images, or of those of animals")
    parser.add_argument("--pretrained", type=Path, help="animals: folder of resnet18.pth and resnet50.pth")
    parser.add_argument("--weights", default="", help="animals: what --pretrained holds, in a few words for the tables")
    parser.add_argument("--out", type=Path, help="default: exp/results/DATASET")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], help="only these")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--drop", action="store_true", help="drop recorded runs of other settings, and run them anew")
    arguments = parser.parse_args(argv)
    out, path = arguments.out or ROOT / "exp" / "results" / arguments.dataset, FOLDER / arguments.dataset
    with errors_in_one_line(), locked(path):
        if arguments.dataset == "animals":
            record = Records(FOLDER)
            experiments = Animals(out, record, arguments.data_root, arguments.pretrained, arguments.weights)
        else:
            record = RunRecord(path)
            experiments = Experiments(arguments.dataset, out, record.content["pace"], arguments.data_root)
        recorded = [task for task in experiments.tasks if record.find(task.method, task.seed)]
        for entry, why in list(record.mismatches({(t.method, t.seed): experiments.settings(t) for t in recorded})):
            end = "dropped" if arguments.drop else "kept; --drop takes it out"
            print(f"{entry['method']}, seed {entry['seed']}: {why} ({end})", flush=True)
            if arguments.drop:
                record.drop(entry)

        def missing() -> list[Task]:
            tasks = [task for task in experiments.tasks if task.seed in (arguments.seeds or [task.seed])]
            return [task for task in tasks if not record.find(task.method, task.seed)]

        perform(experiments, record, missing, arguments.jobs)


if __name__ == "__main__":
    main()
