"""The manifest of a downloaded or built folder. It is written last, so a folder with a manifest is complete.

manifest = read_manifest(folder)
if manifest is None or damaged_files(folder, manifest):
    ...
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NotRequired, TypedDict, cast

from vlm.core.errors import DataError, FetchError
from vlm.core.home import new_file, read_json, write_json
from vlm.core.paths import is_data
from vlm.core.spill import LazyDict, StoredMap

MANIFEST = ".vlm-manifest.json"
PARTIAL = ".partial"
"""Folder inside the target where unfinished work waits; removed after the manifest is written."""

INSTALLING = "install.json"
"""In PARTIAL: the moves that turn unfinished work into the finished folder, written when it is all there."""


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class FileEntry(TypedDict):
    """What a manifest says of one file: its size in bytes, and where it was computed its SHA-256."""

    size: int
    sha256: NotRequired[str]


class Manifest(TypedDict):
    """The content of a manifest: a name, where the files come from, and each file by its name below the folder."""

    name: str
    source: Any
    files: dict[str, FileEntry]


class TreeManifest(Manifest):
    """The manifest of a tree that `vlm data organize` made: also links, record counts, folders of pictures, losses."""

    verified: bool
    links: dict[str, str]
    counts: dict[str, dict[str, int]]
    folders: NotRequired[dict[str, dict[str, int]]]
    lost: int


class _Install(TypedDict):
    """Moves that `install` has noted, with keys in order: `moves` maps a target to the staged file."""

    manifest: str
    moves: dict[str, str]
    stale: list[str]
    content: Manifest


def read_if_whole(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file of ours; None when the file is missing or damaged."""
    try:
        value = read_json(path)
    except DataError:
        return None
    return value if isinstance(value, dict) else None


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest | None:
    """Return the manifest `name` of a folder; None when it is missing or damaged: the folder is then unfinished.

    A manifest that names a path outside the folder, or state of this program, counts as damaged.
    """
    manifest = read_if_whole(folder / name)
    return cast(Manifest, manifest) if _is_manifest(manifest) else None


def _is_manifest(value: Any) -> bool:
    if not (isinstance(value, dict) and "source" in value and isinstance(value.get("files"), dict)):
        return False
    links = value.get("links", {})
    sized = all(isinstance(known, dict) and isinstance(known.get("size"), int) for known in value["files"].values())
    return sized and isinstance(links, dict) and all(is_data(name) for name in (*value["files"], *links))


def damaged_files(folder: Path, manifest: Manifest, *, verify: bool = False) -> list[str]:
    """Return the files of a manifest that are missing or differ in size, or with `verify` in SHA-256."""
    damaged = []
    for name, known in manifest["files"].items():
        path = folder / name
        intact = path.is_file() and path.stat().st_size == known["size"]
        if not intact or (verify and sha256_of(path) != known.get("sha256")):
            damaged.append(name)
    return damaged


def folder_state(folder: Path) -> str:
    """Return `present`, `damaged` (a file of the manifest is missing or cut), `partial` (resumes) or `absent`."""
    manifest = read_manifest(folder)
    if manifest:
        return "damaged" if damaged_files(folder, manifest) else "present"
    return "partial" if (folder / PARTIAL).is_dir() else "absent"


def install(
    folder: Path,
    staged: Iterable[tuple[Path, str]],
    *,
    name: str,
    source: Any,
    manifest: str = MANIFEST,
    sums: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Move staged files to their names below `folder`, write the manifest last, and remove the unfinished work.

    Files of an earlier manifest that no longer belong to it are removed; other files in the folder stay. The moves are
    written down first, so that `finish_install` can complete them after a kill.

    Args:
        folder: The target.
        staged: (path on disk, name below the folder) of each file.
        name: Name of the entry or set, for the manifest.
        source: Where the files come from, for the manifest.
        manifest: Name of the manifest.
        sums: SHA-256 of files by their path on disk, where it was computed as they were written; others are read.

    Raises:
        FetchError: A name leaves the folder, or is one of this program's own; nothing was moved.
    """
    staged = staged if isinstance(staged, Sequence) else list(staged)
    for _, target in staged:
        refuse_name(target, name)
    before = read_manifest(folder, manifest)
    found = StoredMap()  # target -> digest, size, path
    for path, target in staged:
        where = str(path)
        found[target] = f"{sums.get(where) or sha256_of(path)} {path.stat().st_size} {where}"
    n = len(found)
    files = LazyDict(lambda: ((target, _entry(known)) for target, known in found.pairs()), n)
    content: Manifest = {"files": files, "name": name, "source": json.loads(json.dumps(source, sort_keys=True))}
    note: _Install = {
        "manifest": manifest,
        "moves": LazyDict(lambda: ((target, known.split(" ", 2)[2]) for target, known in found.pairs()), n),
        "stale": sorted(gone for gone in (before["files"] if before else ()) if gone not in found),
        "content": content,
    }
    with new_file(folder / PARTIAL / INSTALLING) as temporary, temporary.open("w", encoding="utf-8") as f:
        f.writelines(json.JSONEncoder().iterencode(note))
    _move(folder, note)


def _entry(stored: str) -> FileEntry:
    sha256, size, _ = stored.split(" ", 2)
    return {"sha256": sha256, "size": int(size)}


def finish_install(folder: Path) -> bool:
    """Complete an `install` that was cut short; return whether there was one.

    Raises:
        FetchError: The note of the moves names a path that `install` would not write; nothing was moved.
    """
    path_of_note = folder / PARTIAL / INSTALLING
    found = read_if_whole(path_of_note)
    if found is None:
        return False
    if not _is_note(folder, found):
        raise FetchError(
            f"{path_of_note} names paths outside its folder; nothing was moved or removed",
            expected="the moves that an interrupted command wrote down",
            fix=f"remove {path_of_note.parent}, then rerun the same command",
        )
    _move(folder, cast(_Install, found))
    return True


def _move(folder: Path, note: _Install) -> None:
    """Make the moves of a note, remove the unfinished work, then write the manifest and remove the note."""
    (folder / note["manifest"]).unlink(missing_ok=True)
    parents: set[str] = set()
    for target, path in note["moves"].items():
        if (parent := target.rpartition("/")[0]) not in parents:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            parents.add(parent)
        if os.path.exists(path):  # noqa: PTH110  # a hundred thousand Path objects take seconds
            os.replace(path, f"{folder}/{target}")  # noqa: PTH105
    for stale in note["stale"]:
        (folder / stale).unlink(missing_ok=True)
    partial = folder / PARTIAL
    for left in partial.iterdir():  # all but the note: a run that is killed here is finished by the next one
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != INSTALLING:
            left.unlink(missing_ok=True)
    write_json(folder / note["manifest"], note["content"], in_order=True)
    shutil.rmtree(partial, ignore_errors=True)


def _is_note(folder: Path, note: dict[str, Any]) -> bool:
    """Return whether every path of a note is one that `install` writes: all of them inside the folder."""
    moves, stale, manifest = note.get("moves"), note.get("stale"), note.get("manifest")
    if not (isinstance(moves, dict) and isinstance(stale, list) and isinstance(manifest, str)):
        return False
    if not (manifest.startswith(".vlm-") and "/" not in manifest and _is_manifest(note.get("content"))):
        return False
    for target, path in moves.items():
        if not (isinstance(path, str) and is_data(target)):
            return False
        if Path(path).name == ".." or folder.resolve() not in (Path(path).parent.resolve() / "name").parents:
            return False
    return all(isinstance(name, str) and is_data(name) for name in stale)


def refuse_name(name: str, source: str) -> None:
    """Check the name of a file that a server, a repository or an archive gives.

    Raises:
        FetchError: It leaves its folder, or is one of this program's own.
    """
    if name in ("", ".") or not is_data(name):
        raise FetchError(
            f"{source}: the file name {name!r} is not accepted; nothing was written under it",
            expected="a name below the target folder, none of .vlm-*, .partial, .lock",
            fix="do not use this source; tell its publisher, or correct the catalogue entry",
        )


def files_below(folder: Path) -> list[tuple[Path, str]]:
    """Return (path, name relative to `folder`) of every file below it; hidden folders are left out."""
    found = [(path, path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path, str(name)) for path, name in found if not any(part.startswith(".") for part in name.parts[:-1])]


def count_records(path: Path) -> int:
    """Return the number of records in a `.json` list or a `.jsonl` file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        if path.suffix == ".json":
            return len(json.loads(path.read_text(encoding="utf-8")))
        with path.open("rb") as f:
            return sum(1 for line in f if line.strip())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot count the records of {path}: {error}") from error
