"""The one exception that a user is meant to see."""

import difflib
from collections.abc import Collection

LONGEST = 2000  # characters; a hostile file must not fill the screen


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: the culprit (key, file), the way out.

    `util.run.main` prints it as `error: ...` on stderr and exits with status 2. What a file has put
    into the text (line ends, terminal codes) is escaped.
    """

    def __init__(self, text: str):
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        super().__init__("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))


def suggest(name: str, known: Collection[str], most: int = 20) -> str:
    """The way out of an unknown name, in words: the known one that is near it, or else `most` of them."""
    if near := difflib.get_close_matches(name, known, 1):
        return f"did you mean {near[0]}?"
    return f"there are {', '.join([*known][:most]) or 'none'}{', ...' if len(known) > most else ''}"


def first_line(error: BaseException) -> str:
    """Of the exception's text, or the name of its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory ran out (torch.OutOfMemoryError, cuDNN, cuBLAS) or the host's."""
    words = (
        "out of memory",
        "STATUS_ALLOC_FAILED",
        "DefaultCPUAllocator",
        "not enough memory",
        "Cannot allocate memory",
    )
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def worker_death(error: BaseException | None) -> str | None:
    """PyTorch's report of a dead DataLoader worker, if that is what `error` came from.

    Its SIGCHLD handler raises a RuntimeError at any bytecode of the main process, in the middle of
    any other work; code that catches RuntimeError or Exception must let it pass.
    """
    while error:
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            return first_line(error).strip(". ")
        error = error.__context__
    return None
