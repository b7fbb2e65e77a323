"""How a run is stopped from outside: signals, dying processes, another run in its folder."""

import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from util import distributed, files
from util.errors import UserError

TO_BE_CONTINUED = 75  # exit status EX_TEMPFAIL: nothing is wrong, run the same command again
SYNC_EVERY = 10  # steps between two times that several processes ask each other whether one was told to stop

log = logging.getLogger("stop")


class Interrupt:
    """While entered, SIGTERM, SIGINT and SIGUSR1 (SLURM's early warning) ask for a stop instead of making one."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __enter__(self) -> "Interrupt":
        self.asked = 0  # the signal
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: somebody does not want to wait
        self.asked = number

    def stop_requested(self, sync: bool) -> bool:
        """Whether any process was asked to stop. With several processes, a collective when `sync` is True: call it with
        sync=True at the same step on all; otherwise False.
        """
        if distributed.world_size() == 1:
            return bool(self.asked)
        if not sync:
            return False
        asked = torch.tensor(self.asked, device=distributed.device())
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked)

    def leave(self, text: str) -> None:
        """Exit with 75, once all processes are here: a launcher may end the others with the first that exits."""
        if distributed.world_size() > 1:
            dist.barrier()
        log.info(text)
        sys.exit(TO_BE_CONTINUED)


@contextlib.contextmanager
def worker_death_as_user_error() -> Iterator[None]:
    """Make one line of the death of a process that loads images; PyTorch raises it wherever the run happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].strip(". ")
        raise UserError(
            f"a process that loads images died ({reason}); start again, it goes on from the last checkpoint; if memory "
            "is short, lower TRAIN.workers"
        ) from None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other runs out of it. The kernel lets go of the lock when the process dies."""
    if not distributed.is_main():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot make or write {folder} (TRAIN.save_path): {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by DataLoader workers
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{folder} is in use by another run (process {holder}); stop it or change TRAIN.save_path"
            ) from None
        files.remove_temporaries(folder)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
