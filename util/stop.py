"""How a run is stopped from outside: signals, a worker that dies, another run in its folder."""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from util import distributed, files
from util.errors import UserError, worker_death

try:
    import fcntl
except ImportError:  # not a POSIX system
    print("error: Linux and macOS are supported; on Windows run this in WSL", file=sys.stderr)
    raise SystemExit(2) from None

EX_TEMPFAIL = getattr(os, "EX_TEMPFAIL", 75)  # exit status: nothing is wrong, run the same command again
PATIENCE = 50.0  # seconds from a stop request to leaving in the middle of a step that does not end
SYNC_EVERY = 10  # steps between two times that several processes ask each other whether one was told to stop

log = logging.getLogger("stop")


class Interrupt:
    """While entered, SIGTERM, SIGINT and SIGUSR1 (SLURM's early warning) only request a stop."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __enter__(self) -> "Interrupt":
        self.requested = 0  # the signal
        self.timer = threading.Timer(PATIENCE, _give_up)
        self.timer.daemon = True
        self.before = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self.timer.cancel()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _) -> None:
        if number == self.requested == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: do not wait for the end of the step
        if not self.requested:
            self.timer.start()
        self.requested = number

    def stop_requested(self, sync: bool) -> bool:
        """Whether any process was told to stop.

        With several processes and sync=True this is a collective: call it at the same step on all.
        With sync=False it then returns False.
        """
        if distributed.world_size() == 1:
            return bool(self.requested)
        if not sync:
            return False
        requested = torch.tensor(self.requested, device=distributed.device())
        return bool(distributed.all_reduce(requested, dist.ReduceOp.MAX))

    def leave(self, text: str) -> None:
        """Exit with 75, once all processes are here: the first that exits may end the others."""
        if distributed.world_size() > 1:
            dist.barrier()
        log.info(text)
        sys.exit(EX_TEMPFAIL)


def _give_up() -> None:
    """A loader or file system that stalls would keep the run, and its job, for ever."""
    print(f"error: told to stop {PATIENCE:.0f} s ago, and the step does not end; leaving without it", file=sys.stderr)
    sys.stderr.flush()
    os._exit(EX_TEMPFAIL)


@contextlib.contextmanager
def worker_death_as_user_error() -> Iterator[None]:
    """Turn the death of a DataLoader worker into a one-line UserError."""
    try:
        yield
    except RuntimeError as error:
        reason = worker_death(error)
        if not reason:
            raise
        raise UserError(
            f"a process that loads images died ({reason}); the same command resumes from the last checkpoint; if "
            "memory is short, lower TRAIN.workers"
        ) from None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other runs out of it. The lock ends with the process.

    Raises UserError when another run holds it. Where the file system has no locks, warns and goes
    on.
    """
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
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning(f"warning: {folder} cannot be locked ({error.strerror}); start no second run in it")
            else:
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
