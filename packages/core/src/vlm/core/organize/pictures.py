"""Folders of pictures by name, and by the records that point into them, with counts.

Each folder is listed once instead of asking the disk for each file: a published set has millions of them.
"""

import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.ledger import DroppedRecord
from vlm.core.organize.convert_records import iter_lines
from vlm.core.paths import is_inside
from vlm.core.progress import Report, silent


@dataclass(frozen=True)
class FolderCount:
    """One folder: records that point into it, different files that they name, records that name a missing one."""

    records: int
    files: int
    lost: int


@dataclass(frozen=True)
class PictureCheck:
    """What was found: counts by folder, records that cannot be used, and folders or files that are not there."""

    counts: dict[str, FolderCount]
    losses: list[DroppedRecord]
    missing: list[str]

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts for a manifest."""
        return {folder: asdict(count) for folder, count in self.counts.items()}

    def faults(self, max_lost: float) -> list[str]:
        """Return a line for each folder in which more than this share of the records name a missing file."""
        return [
            f"{folder}: {count.lost:,} of {count.records:,} records name a file that is not there or is empty"
            for folder, count in self.counts.items()
            if count.lost > max_lost * count.records
        ]


def check_pictures(pictures: dict[str, tuple[str, ...]], root: Path, *, report: Report = silent) -> PictureCheck:
    """Look for each folder, and for each file that the records of its annotation name.

    Args:
        pictures: Folder -> annotation files, both below `root` (`Entry.pictures`).
        root: Folder of the set.
        report: Called with the records so far; how many there are is not known.
    """
    check, seen = PictureCheck({}, [], []), 0
    for folder, annotations in pictures.items():
        if not _files(str(root / folder)):
            check.missing.append(folder if not (root / folder).is_dir() else f"{folder}: the folder is empty")
            continue
        check.missing.extend(name for name in annotations if not (root / name).is_file())
        records = lost = 0
        named: set[str] = set()
        for path in (root / name for name in annotations if (root / name).is_file()):
            for where, record in iter_lines(path):
                records, seen = records + 1, seen + 1
                try:
                    names = _names(record)
                    gone = next((name for name in names if not _is_there(root, folder, name)), None)
                    why = None if gone is None else f"no such file: {folder}/{gone}"
                    named.update(names)
                except DataError as error:
                    why = error.found
                if why is not None:
                    lost += 1
                    check.losses.append(DroppedRecord(where, "media", why))
                report(seen, None)
        check.counts[folder] = FolderCount(records, len(named), lost)
        _files.cache_clear()
    return check


def _names(record: Any) -> list[str]:
    if isinstance(record, DataError):
        raise record
    value = record.get("image", []) if isinstance(record, dict) else None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"image {value!r:.60}", expected="a path or a list of paths")
    return names


def _is_there(root: Path, folder: str, name: str) -> bool:
    """Return whether a file is there. As the published evaluator reads it, a name may start with `dataset/`."""
    if not is_inside(name):
        return False
    whole = name.startswith("dataset/")
    path = root / "data" / name.removeprefix("dataset/") if whole else root / folder / name
    return path.name in _files(str(path.parent))


@lru_cache(1024)
def _files(folder: str) -> frozenset[str]:
    """Return the names in a folder, without files of no bytes: what an interrupted copy leaves."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(e.name for e in entries if e.is_dir() or e.stat().st_size)
    except OSError:
        return frozenset()
