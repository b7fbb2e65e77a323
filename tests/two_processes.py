"""The same distillation by one process and by two."""

import json

from conftest import python


def by_one_and_two(tiny, command, driver: str) -> list[list[dict]]:
    """The metrics of both, started by a driver's text, without what each process draws for itself."""
    (tiny.out / "driver.py").write_text(driver)
    metrics = []
    for processes in (1, 2):
        folder = tiny.out / str(processes)
        options = command(folder, "TRAIN.dropout", "0.0", "TRAIN.batch_size", "4", "TRAIN.gradient_shares", "False")
        result = python(tiny.out / "driver.py", "train_50_18.py", *options, processes=processes)
        assert result.returncode == 0, result.stderr
        metrics.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    return metrics
