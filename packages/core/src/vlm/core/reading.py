"""Foreign files opened so that reading never blocks: regular files only, and every read has a deadline.

with open_regular(path) as file:
    head = file.read(16)
"""

import io
import os
import queue
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from vlm.core.errors import DataError
from vlm.core.text import printable

READ_SECONDS = 60.0
"""Longest wait for one read: a disk answers in milliseconds, a network file system that fails over in seconds."""

LOOK = 1.0
"""Seconds are counted look by look, not by the clock: a process that was suspended meanwhile has not waited."""

HEAD, BUFFER = 1 << 16, 1 << 18
"""Bytes that are read when a file is opened, and later at a time."""

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

T = TypeVar("T")


class _Worker:
    """A thread that does one piece of work at a time for the thread that owns it, and ends with its owner."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self.work, self.results), daemon=True, name="file reader").start()

    def __del__(self) -> None:
        self.work.put(None)


def _serve(work: Any, results: Any) -> None:
    while (task := work.get()) is not None:
        try:
            results.put((True, task()))
        except BaseException as error:  # noqa: BLE001  # whatever it is, the thread that asked raises it
            results.put((False, error))
        task = None  # keeps nothing of the last file alive


_mine = threading.local()


def within(seconds: float, what: str, task: Callable[[], T]) -> T:
    """Return `task()`, done by another thread while this one waits and answers signals.

    A thread that hangs in the kernel cannot be stopped. It is left behind, and the process can end without it.

    Args:
        seconds: The longest wait.
        what: The file, for the error message.
        task: Called without arguments; what it raises is raised here.

    Raises:
        DataError: `task` took longer.

    >>> within(1.0, "a sum", lambda: 1 + 1)
    2
    """
    worker = getattr(_mine, "worker", None)
    if worker is None or worker.process != os.getpid():  # a forked process has no threads
        worker = _mine.worker = _Worker()
    worker.work.put(task)
    answer, waited = None, 0.0
    _mine.worker = None  # until it has answered: after a signal it is left behind
    while answer is None and waited < seconds:
        look = min(LOOK, seconds - waited)
        with suppress(queue.Empty):
            answer = worker.results.get(timeout=look)
        waited += look
    if answer is None:
        raise DataError(
            f"{printable(what)} did not answer for {seconds:g} s",
            expected="a disk that can be read",
            fix="look at the disk or the network mount, then rerun the command",
        )
    _mine.worker = worker
    good, value = answer
    if not good:
        raise value
    return cast("T", value)


class _TimedFile(io.RawIOBase):
    """A regular file, each of whose reads has a deadline. Raises DataError where a read takes longer."""

    def __init__(self, path: str | Path):
        super().__init__()
        self.name = str(path)
        self._file, self._at = -1, 0
        self._file, self._size, self._head = within(READ_SECONDS, self.name, lambda: _opened(path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(f"position {at}")  # as a file on a disk says it
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        n, at = len(buffer), self._at
        try:
            data = self._head[at : at + n] or within(READ_SECONDS, self.name, lambda: os.pread(self._file, n, at))
        except OSError:
            raise
        except BaseException:
            self._file = -1  # the thread that is left behind still uses it
            raise
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()


def _opened(path: str | Path) -> tuple[int, int, bytes]:
    """Return the descriptor, the size and the first bytes of a regular file."""
    _refuse(path, os.stat(path).st_mode)  # noqa: PTH116  # opening a device can already do something
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        _refuse(path, status.st_mode)  # it may be another file by now
        return file, status.st_size, os.pread(file, HEAD, 0)
    except BaseException:
        os.close(file)
        raise


def _refuse(path: str | Path, mode: int) -> None:
    for is_kind, name in KINDS:
        if is_kind(mode):
            raise DataError(f"{printable(path)} is {name}", expected="a file", fix="name a file, or remove the record")


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file to read bytes, without ever blocking.

    Raises:
        DataError: It is a folder, named pipe, socket or device; or, while it is read, a read takes longer than
            `READ_SECONDS`.
        OSError: It is missing or must not be read.
        ValueError: No file can have this name.

    >>> with open_regular("dataset/digits/train.jsonl") as file:    # doctest: +SKIP
    ...     first = file.readline()
    """
    return io.BufferedReader(_TimedFile(path), BUFFER)


def check_regular(path: str | Path) -> None:
    """Do nothing for a regular file or a name that cannot be looked up: whoever opens it says what is wrong with it.

    Raises:
        DataError: It is a folder, named pipe, socket or device, which would block or end in an error without a name; or
            the disk does not answer.
    """
    try:
        mode = within(READ_SECONDS, str(path), lambda: os.stat(path).st_mode)  # noqa: PTH116
    except (OSError, ValueError):
        return
    _refuse(path, mode)


def is_folder(path: str | Path) -> bool:
    """Return whether a path is a folder; False for a name that cannot be looked up.

    Raises:
        DataError: The disk does not answer.
    """
    try:
        return within(READ_SECONDS, str(path), lambda: stat.S_ISDIR(os.stat(path).st_mode))  # noqa: PTH116
    except (OSError, ValueError):
        return False
