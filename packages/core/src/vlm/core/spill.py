"""Collections that hardly grow in memory: a list on the disk, places by name, names that were seen before.

items = Spilled[Item]()
items.append(item)
items[0], len(items), list(items)
"""

import os
import pickle
import sqlite3
import tempfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Generic, Self, TypeVar, overload

import numpy as np

from vlm.core.home import naming

HELD = 4096
"""Elements of a `Spilled` that stay in memory: those of nearly every benchmark."""

READ = 256
"""Elements that are read from the file at once."""

CODEC = ("utf-8", "surrogatepass")
"""Of ids and names, which may hold any bytes of a file."""

T = TypeVar("T")


class Spilled(Sequence[T], Generic[T]):
    """A list that only grows. Beyond its first elements it lies in a temporary file, in memory 8 bytes an element.

    An element from the file is an equal copy of what was appended.

    Args:
        values: The first elements.
        held: Elements that stay in memory.

    >>> numbers = Spilled(range(5), held=2)
    >>> numbers[4], numbers[-5], numbers[1:3], len(numbers)
    (4, 0, [1, 2], 5)
    """

    def __init__(self, values: Iterable[T] = (), *, held: int = HELD):
        self._held: list[T] = []
        self._room = held
        self._ends = array("q", [0])
        self._file: IO[bytes] | None = None
        self._dirty = False
        self._place = Path(tempfile.gettempdir())
        for value in values:
            self.append(value)

    def append(self, value: T) -> None:
        """Add an element. Raises OSError, which names the folder, where the disk is full."""
        if len(self._held) < self._room:
            self._held.append(value)
            return
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        with naming(self._place):
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
            self._file.write(data)
        self._dirty = True
        self._ends.append(self._ends[-1] + len(data))

    def __len__(self) -> int:
        return len(self._held) + len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return self._held[at] if at < len(self._held) else next(self._read(at - len(self._held), 1))

    def __iter__(self) -> Iterator[T]:
        yield from self._held
        for first in range(0, len(self._ends) - 1, READ):
            yield from self._read(first, READ)

    def _read(self, first: int, n: int) -> Iterator[T]:
        """Yield some of the elements in the file, which are read at once."""
        assert self._file is not None, "elements beyond those in memory are in the file"
        ends = self._ends[first : first + n + 1]
        if self._dirty:
            with naming(self._place):
                self._file.flush()
            self._dirty = False
        data = memoryview(os.pread(self._file.fileno(), ends[-1] - ends[0], ends[0]))
        for start, end in pairwise(ends):
            yield pickle.loads(data[start - ends[0] : end - ends[0]])

    def __del__(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


class Places:
    """Numbers by name, in 12 bytes a name: names are kept as hashes, so the caller compares what is found.

    >>> places = Places()
    >>> for number, name in enumerate(["cat", "dog", "cat"]):
    ...     places.add(name, number)
    >>> places.find("cat"), places.find("cow")
    ([0, 2], [])
    """

    def __init__(self) -> None:
        self._hashes, self._numbers, self._in_order = array("q"), array("i"), True

    def add(self, name: str, number: int) -> None:
        """Note a number under a name."""
        self._hashes.append(hash(name))
        self._numbers.append(number)
        self._in_order = False

    def find(self, name: str) -> list[int]:
        """Return the numbers under a name, in the order in which they came; with 1 in 10^19, those of another too."""
        if not self._in_order:
            order = np.argsort(np.frombuffer(self._hashes, np.int64), kind="stable")
            self._hashes = array("q", np.frombuffer(self._hashes, np.int64)[order].tobytes())
            self._numbers = array("i", np.frombuffer(self._numbers, np.int32)[order].tobytes())
            self._in_order = True
        first = bisect_left(self._hashes, hash(name))
        return self._numbers[first : bisect_right(self._hashes, hash(name), first)].tolist()


class Seen:
    """Where each key of a kind was seen first; in a temporary database.

    It holds 32 MB in memory at most, whatever the number of keys. Usage: `with Seen() as seen: ...`.
    """

    def __init__(self) -> None:
        self.base = sqlite3.connect("", check_same_thread=False)
        self.base.execute("PRAGMA cache_size=-32768")
        self.base.execute("PRAGMA journal_mode=OFF")
        self.base.execute("CREATE TABLE seen (kind TEXT, key BLOB, place BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID")

    def before(self, kind: str, key: bytes, place: str) -> str | None:
        """Return where a key was seen before; None notes that it is at `place`."""
        if self.base.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (kind, key, place.encode(*CODEC))).rowcount:
            return None
        found = self.base.execute("SELECT place FROM seen WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return str(found[0], *CODEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.base.close()

    def __del__(self) -> None:
        self.base.close()
