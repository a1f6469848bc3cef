"""Files of lines that grow while they are read: only what is new is read, and a torn last line waits for its end.

tail = Tail(Path("runs/mine/train/mine/metrics.jsonl"))
changed, lines = tail.read()       # everything at first, then what was appended
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vlm.core.errors import DataError
from vlm.core.reading import open_regular

PIECE = 1 << 22
"""Bytes read at once."""

EDGE = 64
"""Bytes before the place reached that must still be the same: a file that was written anew can be longer."""


class Stamp(NamedTuple):
    """What tells whether a file changed: its number on the disk, its size and its time. All 0 without a file."""

    inode: int = 0
    size: int = 0
    time: int = 0


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file as it is now."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return Stamp()
    return Stamp(about.st_ino, about.st_size, about.st_mtime_ns)


class Tail:
    """The whole lines of a file, each read once. A file that was cut, replaced or removed is read from its start.

    Who stops before the last line gets the rest with the next `read`; `left` says how many bytes that is.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path):
        self.path, self.stamp = path, Stamp()
        self._at, self._edge, self.left = 0, b"", 0

    def read(self) -> tuple[bool, Iterator[bytes]]:
        """Return whether the file starts anew, and an iterator over the lines that are new.

        Raises:
            DataError: It is no regular file, or its disk does not answer.
        """
        now = stamp_of(self.path)
        if now == self.stamp and not self.left:
            return False, iter(())
        anew = bool(self._at) and (now.inode != self.stamp.inode or now.size < self._at or not self._same_edge())
        if anew:
            self._at, self._edge = 0, b""
        self.stamp, self.left = now, now.size - self._at
        return anew, self._lines(now.size)

    def _same_edge(self) -> bool:
        try:
            with open_regular(self.path) as file:
                file.seek(self._at - len(self._edge))
                return file.read(len(self._edge)) == self._edge
        except OSError:
            return False

    def _lines(self, size: int) -> Iterator[bytes]:
        if size <= self._at:
            return
        with suppress(OSError), open_regular(self.path) as file:  # it may be gone by now: the next look says so
            file.seek(self._at)
            rest = b""
            while piece := file.read(min(PIECE, size - self._at - len(rest))):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    self._at += len(line) + 1
                    self._edge, self.left = (line + b"\n")[-EDGE:], size - self._at
                    yield line
        self.left = 0


def object_of(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, with None for values that are not numbers; None for anything else."""
    try:
        value = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_small(path: Path, most: int = 1 << 24) -> dict[str, Any]:
    """Return the JSON object of a small file; empty where there is none, or not a whole one."""
    try:
        with open_regular(path) as file:
            return object_of(file.read(most)) or {}
    except (OSError, ValueError, DataError):
        return {}
