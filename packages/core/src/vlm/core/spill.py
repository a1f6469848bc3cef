"""Collections that hardly grow in memory: lists and dicts on the disk, places by name, names that were seen before.

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
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from itertools import pairwise
from operator import eq
from pathlib import Path
from threading import Lock
from typing import IO, Any, Generic, Self, TypeVar, overload

from vlm.core.home import naming

HELD = 4096
"""Elements of a `Spilled` that stay in memory: those of nearly every benchmark."""

READ = 256
"""Elements that are read from the file at once."""

WRITTEN = 1000
"""Pairs of a `StoredMap` that are written at once."""

CODEC = ("utf-8", "surrogatepass")
"""Of ids and names, which may hold any bytes of a file."""

T = TypeVar("T")
V = TypeVar("V")


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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

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
            import numpy as np

            order = np.argsort(np.frombuffer(self._hashes, np.int64), kind="stable")
            self._hashes = array("q", np.frombuffer(self._hashes, np.int64)[order].tobytes())
            self._numbers = array("i", np.frombuffer(self._numbers, np.int32)[order].tobytes())
            self._in_order = True
        first = bisect_left(self._hashes, hash(name))
        return self._numbers[first : bisect_right(self._hashes, hash(name), first)].tolist()


class StoredMap(MutableMapping[str, str]):
    """A dict of texts in a temporary database, which yields its keys in order. It holds 1 MB in memory at most.

    Several threads may use it; a loop over it must end before it is changed.

    >>> sums = StoredMap()
    >>> sums["b"], sums["a"] = "2", "1"
    >>> list(sums.pairs()), "c" in sums, len(sums)
    ([('a', '1'), ('b', '2')], False, 2)
    """

    def __init__(self) -> None:
        self._base, self._lock = _database(1024), Lock()
        self._base.execute("CREATE TABLE pairs (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self._new: dict[bytes, bytes] = {}

    def __setitem__(self, key: str, value: str) -> None:
        with self._lock:
            self._new[key.encode(*CODEC)] = value.encode(*CODEC)
            if len(self._new) == WRITTEN:
                self._write()

    def _write(self) -> None:
        self._base.executemany("INSERT OR REPLACE INTO pairs VALUES (?, ?)", self._new.items())
        self._new.clear()

    def _find(self, key: bytes) -> bytes | None:
        with self._lock:
            if (value := self._new.get(key)) is not None:
                return value
            found = self._base.execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
            return found and bytes(found[0])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key.encode(*CODEC)) is not None

    def __getitem__(self, key: str) -> str:
        found = self._find(key.encode(*CODEC))
        if found is None:
            raise KeyError(key)
        return str(found, *CODEC)

    def __delitem__(self, key: str) -> None:
        self[key]  # raises KeyError
        with self._lock:
            self._write()
            self._base.execute("DELETE FROM pairs WHERE key = ?", (key.encode(*CODEC),))

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self.pairs())

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield all keys, in order, with their values."""
        with self._lock:
            self._write()
        for key, value in self._base.execute("SELECT key, value FROM pairs ORDER BY key"):
            yield str(key, *CODEC), str(value, *CODEC)

    def __len__(self) -> int:
        with self._lock:
            self._write()
            return int(self._base.execute("SELECT count(*) FROM pairs").fetchone()[0])

    def __del__(self) -> None:
        self._base.close()


class LazyDict(dict[str, V], Generic[V]):
    """A dict for reading whose pairs are made anew by each loop over `items()`, as `json` writes one."""

    def __init__(self, pairs: Callable[[], Iterable[tuple[str, V]]], n: int):
        self._pairs, self._n = pairs, n

    def items(self) -> Any:
        """Return the pairs."""
        return self._pairs()

    def __len__(self) -> int:
        return self._n


def _database(kilobytes: int) -> sqlite3.Connection:
    """Return a temporary database that keeps so many kilobytes in memory."""
    base = sqlite3.connect("", check_same_thread=False, isolation_level=None)
    base.execute(f"PRAGMA cache_size=-{kilobytes}")
    base.execute("PRAGMA journal_mode=OFF")
    return base


class Seen:
    """Where each key of a kind was seen first; in a temporary database.

    It holds 32 MB in memory at most, whatever the number of keys. Usage: `with Seen() as seen: ...`.
    """

    def __init__(self) -> None:
        self.base = _database(32768)
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
