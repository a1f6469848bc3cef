"""Lines of a JSONL file of any size in any order, with memory that does not grow with the file."""

import hashlib
import os
import shutil
import struct
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from filelock import FileLock

from vlm.core.errors import DataError
from vlm.core.home import home, new_file
from vlm.core.sample.lines import BLANK, HEAD, refuse_other_forms

MAGIC = b"vlmline3"
STAMP = struct.Struct("<8sQQ16s")
HEADER = struct.Struct("<8sQQ16s32s")
"""A stamp and the sha256 of the content; the numbers follow."""
EDGE = 1 << 16
CHUNK = 1 << 22
IN_MEMORY = 1 << 20
"""Up to this many items a permutation is a table; beyond, it is computed item by item."""
END = 1 << 63
"""Set in the last number of an index, which is how many blank lines it holds."""
IS_BLANK = np.isin(np.arange(256, dtype=np.uint8), np.frombuffer(BLANK, np.uint8))


def stamp(path: Path) -> bytes:
    """Return what changes with a file: size, time of modification in ns, and a hash of its first and last 64 KiB."""
    with path.open("rb") as f:
        status = os.fstat(f.fileno())
        digest = hashlib.blake2b(f.read(EDGE), digest_size=16)
        f.seek(max(0, status.st_size - EDGE))
        digest.update(f.read(EDGE))
    return STAMP.pack(MAGIC, status.st_size, status.st_mtime_ns, digest.digest())


class IndexedLines(NamedTuple):
    """What an index holds, mapped into memory.

    - `digest`: sha256 of the data file
    - `offsets`: of the records and of the end, uint64 [records + 1]
    - `blanks`: for each blank line the number of records before it
    """

    digest: str
    offsets: np.ndarray
    blanks: np.ndarray


class LineIndex:
    """`index[i]` is record i of a file, as bytes: a line that is not blank; `len(index)` is the number of records.

    The offset of each is in a file of 8 bytes a line below `folder` (default: `$VLM_HOME/.index`). It is built
    once in one pass, mapped into memory and shared by all processes; `digest` is the sha256 of the content, from the
    same pass. When size, time or the edges of the data file change, both are made again, under a lock, and appear in
    one piece. Where `folder` cannot be written, each process has a temporary file.

    >>> index = LineIndex(Path("dataset/easy-vqa/train.jsonl"))   # doctest: +SKIP
    >>> json.loads(index[0])                                      # doctest: +SKIP

    Raises:
        DataError: The file is missing, is not JSON lines, or changes while it is read.
    """

    def __init__(self, path: Path, folder: Path | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"no such file: {self.path}", fix="`vlm plan RECIPE` shows the line that fetches it")
        with self.path.open("rb") as f:
            refuse_other_forms(self.path, f.read(HEAD))
        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:24]
        folder = home() / ".index" if folder is None else folder
        try:
            found = shared_offsets(self.path, folder / f"{name}.lines")
        except OSError:  # a folder that is read-only or full
            with tempfile.TemporaryFile() as f:
                write_offsets(self.path, f, stamp(self.path))
                found = mapped(f)
        self.digest, self._offsets, self._blanks = found
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def line(self, i: int) -> int:
        """Return the number of the line, from 1, that record i is on."""
        return i + 1 + int(np.searchsorted(self._blanks, i, side="right"))

    def __getitem__(self, i: int) -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(i)
        begin, end = int(self._offsets[i]), int(self._offsets[i + 1])
        # needs no file position, so that threads and forked processes can share the handle
        return os.pread(self._file, end - begin, begin)


def shared_offsets(path: Path, file: Path) -> IndexedLines:
    """Return what `mapped` reads from `file`; it is made when it is missing or does not belong to `path` as it is."""
    found = read_offsets(file, stamp(path))
    if found is not None:
        return found
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        found = read_offsets(file, stamp(path))  # another process may have been faster
        if found is not None:
            return found
        with new_file(file) as temporary, temporary.open("wb") as f:
            write_offsets(path, f, stamp(path))
        with file.open("rb") as f:
            return mapped(f)


def mapped(file: IO[bytes]) -> IndexedLines:
    """Return what `write_offsets` wrote. Raises ValueError where the file is cut."""
    file.seek(STAMP.size)
    digest = file.read(HEADER.size - STAMP.size).hex()
    numbers = np.memmap(file, "<u8", "r", HEADER.size)
    blanks = int(numbers[-1]) - END
    if not 0 <= blanks <= len(numbers) - 2:
        raise ValueError("no index")
    return IndexedLines(digest, numbers[: len(numbers) - 1 - blanks], numbers[len(numbers) - 1 - blanks : -1])


def read_offsets(file: Path, wanted: bytes) -> IndexedLines | None:
    """Return what `mapped` reads; None when the file is missing, cut, or made for another content than `wanted`."""
    try:
        with file.open("rb") as f:
            if f.read(STAMP.size) != wanted or (f.seek(0, os.SEEK_END) - HEADER.size) % 8:
                return None
            found = mapped(f)
    except (FileNotFoundError, ValueError):
        return None
    return found if found.offsets[-1] == STAMP.unpack(wanted)[1] else None


def write_offsets(path: Path, out: IO[bytes], before: bytes) -> None:
    """Write digest and offsets of the records of `path` in one pass, with a chunk of the file in memory at a time.

    A blank line is no record: it belongs to the bytes of the record before it, and its place is noted.

    Raises:
        DataError: The file changes while it is read: its stamp is no longer `before`.
    """
    out.write(before.ljust(HEADER.size, b"\0"))
    content = hashlib.sha256()
    records = read = begin = n_blanks = 0
    filled = False  # the open line, which begins at `begin`, is not blank so far
    with path.open("rb") as source, tempfile.TemporaryFile() as blanks:
        while chunk := source.read(CHUNK):
            content.update(chunk)
            data = np.frombuffer(chunk, np.uint8)
            ends = np.flatnonzero(data == ord("\n"))
            starts = np.concatenate([[0], ends + 1])
            starts = starts[starts < len(data)]
            full = ~IS_BLANK[data[starts]]
            if not full.all():  # only then look at more than the first byte of each line
                full = np.logical_or.reduceat(~IS_BLANK[data], starts)
            full[0] |= filled
            places = (starts + read).astype("<u8")
            places[0] = begin
            ended = full[: len(ends)]
            out.write(places[: len(ends)][ended].tobytes())
            noted = records + np.cumsum(ended)[~ended]
            blanks.write(noted.astype("<u8").tobytes())
            n_blanks += len(noted)
            records += int(ended.sum())
            read += len(data)
            is_open = len(starts) > len(ends)
            begin, filled = (int(places[-1]), bool(full[-1])) if is_open else (read, False)
        if filled:  # the last line has no end
            out.write(begin.to_bytes(8, "little"))
        out.write(read.to_bytes(8, "little"))
        blanks.seek(0)
        shutil.copyfileobj(blanks, out)
    out.write((END + n_blanks).to_bytes(8, "little"))
    out.seek(STAMP.size)
    out.write(content.digest())
    out.flush()
    if stamp(path) != before:
        raise DataError(f"{path} changes while it is read", fix="wait until it is complete")


class Shuffle(Sequence[int]):
    """A permutation of 0 ... n - 1 that depends on `key` alone: `shuffle[i]` takes constant time, in bounded memory.

    Up to `in_memory` items it is numpy's permutation. Beyond, it is a Feistel network over the next power of four with
    keyed BLAKE2 as round function; a value outside the range goes through again (format-preserving encryption by cycle
    walking).
    """

    def __init__(self, n: int, *key: int, in_memory: int = IN_MEMORY):
        self.n, self.key = n, repr(key).encode()[:64]
        self.table = np.random.default_rng(key).permutation(n) if n <= in_memory else None
        self.half = max(1, ((n - 1).bit_length() + 1) // 2)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:  # type: ignore[override]
        if not 0 <= i < self.n:
            raise IndexError(i)
        if self.table is not None:
            return int(self.table[i])
        while True:
            left, right = i >> self.half, i & ((1 << self.half) - 1)
            for number in range(4):
                data = struct.pack("<BQ", number, right)
                mixed = int.from_bytes(hashlib.blake2b(data, key=self.key, digest_size=8).digest(), "little")
                left, right = right, left ^ (mixed & ((1 << self.half) - 1))
            i = left << self.half | right
            if i < self.n:
                return i


class Mixture(Sequence[tuple[int, int]]):
    """`mixture[k]` is (file, line) of sample k of an epoch, before shuffling.

    Each file counts its whole repeats, then a seeded choice of its lines for the fraction. Nothing is stored per line.
    """

    def __init__(self, lengths: Sequence[int], repeats: Sequence[float], seed: int):
        self.lengths = lengths
        self.whole = [int(repeat) * n for n, repeat in zip(lengths, repeats, strict=True)]
        self.parts: list[Sequence[int]] = []
        sizes = []
        for number, (n, repeat) in enumerate(zip(lengths, repeats, strict=True)):
            chosen = round((repeat - int(repeat)) * n)
            order = Shuffle(n, seed, number) if chosen else range(0)
            in_memory = isinstance(order, Shuffle) and order.table is not None
            self.parts.append(np.sort(order.table[:chosen]) if in_memory else order)  # type: ignore[union-attr,index,arg-type]
            sizes.append(self.whole[number] + chosen)
        self.starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, k: int) -> tuple[int, int]:  # type: ignore[override]
        if not 0 <= k < len(self):
            raise IndexError(k)
        number = bisect_right(self.starts, k) - 1
        offset = k - self.starts[number]
        if offset < self.whole[number]:
            return number, offset % self.lengths[number]
        return number, int(self.parts[number][offset - self.whole[number]])
