"""Where tool/demo.py's pictures come from and go to: files, folders, videos, cameras, streams of JPEG pictures."""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from util.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
RATE = 25.0  # frames a second, where the source does not say
CHUNK = 1 << 16  # bytes


class Stream(NamedTuple):
    name: str
    frames: Iterator[NDArray[np.uint8]]  # (H, W, 3) RGB
    rate: float  # frames a second
    live: bool  # frames come when they come, and late ones are of no use


def pictures(source: str) -> list[Path] | None:
    """The picture files that `source` names, itself or those of its folder; None where it is a stream.

    Raises UserError for what is neither.
    """
    path = Path(source)
    if source == "-" or (source.isdigit() and not path.exists()):
        return None
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"folder {path} holds no picture ({', '.join(sorted(SUFFIXES))})")
        return found
    if not path.is_file():
        raise UserError(
            f"{source} does not exist; name a picture, a folder, a video, a camera's number, or - for stdin"
        )
    if path.suffix.lower() in SUFFIXES or cv2.haveImageReader(str(path)):
        return [path]
    return None


def open_stream(source: str, live: bool) -> Stream:
    """A video file, a camera by its number, or `-`: JPEG pictures one after the other on stdin, live or not."""
    if source == "-":
        return Stream("stdin", _decode(_jpegs(os.fdopen(0, "rb", buffering=0, closefd=False))), RATE, live)
    camera = source.isdigit() and not Path(source).exists()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what they complain of, the error below says in one line
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(int(source)) if camera else cv2.VideoCapture(source)
    good, first = capture.read() if capture.isOpened() else (False, None)
    if not good:
        kind = (
            f"camera {source} cannot be opened" if camera else f"{source} is no picture or video that OpenCV can read"
        )
        raise UserError(f"{kind}; see --help for what can be named")
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate < 1000 else RATE
    return Stream(f"camera{source}" if camera else Path(source).stem, _captured(capture, first), rate, camera)


def _captured(capture: cv2.VideoCapture, frame: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    good = True
    while good:
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        good, frame = capture.read()


def _jpegs(file) -> Iterator[bytes]:
    """Split a stream of JPEG pictures at their ends, by their markers: a thumbnail inside has an end of its own.

    A stream that begins otherwise is one picture of another kind, given whole.
    """
    buffer = bytearray()

    def need(size: int) -> bool:
        while len(buffer) < size:
            part = file.read(CHUNK)
            if not part:
                return False
            buffer.extend(part)
        return True

    while need(4):
        if buffer[:2] != b"\xff\xd8":
            while need(len(buffer) + 1):
                pass
            yield bytes(buffer)
            return
        at = 2
        while need(at + 4) or need(at + 2):
            marker = buffer[at + 1]
            if buffer[at] != 0xFF or marker == 0xD9:  # of entropy-coded data; the end
                if buffer[at] == 0xFF:
                    break
                at += 1
            elif marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD7:  # stuffing, fill bytes, restarts
                at += 2 - (marker == 0xFF)
            else:
                at += 2 + int.from_bytes(buffer[at + 2 : at + 4], "big")
        yield bytes(buffer[: at + 2])
        del buffer[: at + 2]


def _decode(parts: Iterator[bytes]) -> Iterator[NDArray[np.uint8]]:
    number = 0
    for number, part in enumerate(parts, 1):
        image = cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(f"picture {number} on stdin cannot be decoded; send JPEG pictures, or one of any kind")
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if not number:
        raise UserError("no picture came on stdin")


def ahead(frames: Iterable[NDArray[np.uint8]], live: bool) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Read `frames` in a thread -> frame, and how many it stands for: live, frames nobody had time for are dropped."""
    box: queue.Queue = queue.Queue(1 if live else 4)

    def work() -> None:
        last: Exception | None = None
        try:
            for frame in frames:
                count = 1
                if live:
                    with contextlib.suppress(queue.Empty):
                        count += box.get_nowait()[1]
                box.put((frame, count))
        except Exception as error:  # noqa: BLE001 - raised again below, where the caller can see it
            last = error
        box.put((last, 0))

    threading.Thread(target=work, daemon=True).start()
    while True:
        frame, count = box.get()
        if not count:
            if frame is not None:
                raise frame
            return
        yield frame, count


class VideoFile:
    """An MP4 file of RGB frames of one size; later ones of another size are fitted to the first."""

    def __init__(self, path: Path, rate: float):
        self.path, self.rate, self.writer, self.size = path, rate, None, (0, 0)

    def write(self, frame: NDArray[np.uint8], count: int) -> None:
        """count: how many frames of the source this one stands for, so that time is kept."""
        if self.writer is None:
            self.size = frame.shape[1] // 2 * 2, frame.shape[0] // 2 * 2  # the codec wants even sides
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.rate, self.size)
            if not self.writer.isOpened():
                raise UserError(f"cannot write the video {self.path}")
        frame = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        frame = frame if frame.shape[1::-1] == self.size else cv2.resize(frame, self.size)
        for _ in range(count):
            self.writer.write(frame)

    def close(self) -> None:
        if self.writer:
            self.writer.release()


class Pipe:
    """JPEG pictures one after the other on stdout, for a player: ... | ffplay -f mjpeg -"""

    path = "stdout"

    def write(self, frame: NDArray[np.uint8], _count: int) -> None:
        _, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        try:
            sys.stdout.buffer.write(data.tobytes())
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains again at exit
            raise KeyboardInterrupt from None  # the player was closed: that is how a user ends a live picture

    def close(self) -> None:
        pass
