"""What may go below `$VLM_HOME`: unfinished downloads, indices, checkpoints of finished stages, what a kill left.

Only what this program's own marks say is ours is offered: the manifest of a checkpoint, the notes in a `.partial`
folder beside a lock, the names in `.index`. A folder that holds anything else stays whole and is named. No link is
followed.

>>> found = find_leftovers(home())                              # doctest: +SKIP
>>> [(left.kind, left.path) for left in found.leftovers]        # doctest: +SKIP
>>> remove(found.leftovers)                                     # doctest: +SKIP
"""

import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vlm.core.errors import LockedError
from vlm.core.fetch.manifest import INSTALLING, PARTIAL
from vlm.core.home import beside, locked

KINDS = {
    "partial": "downloads and builds that were not finished; the same command would continue them",
    "index": "where the lines of training files begin; made again when they are needed",
    "checkpoints": "training checkpoints of stages whose model is exported; they are never read again",
    "temporary": "files that a killed command was writing",
}
"""Kind -> what it is, for the help and the table."""

PLACES = ("pretrained", "dataset", "runs", ".index")
NOTES = re.compile(r"source\.json|install\.json|[0-9]+|build|mini|organise(-.+)?|\..+\.tmp")
"""Names that downloads, `vlm data organize`, `build` and `mini` write in a `.partial` folder."""

STEP = re.compile(r"step-[0-9]{8}")
LINES = re.compile(r"[0-9a-f]{24}\.(lines|lock)")
WRITING = re.compile(r"\..+\.[0-9]+\.tmp")
REMOVING = {beside(PARTIAL, ".tmp")}
"""Names under which a removal that was killed left its folder."""


class Leftover(NamedTuple):
    """One thing that may go: its kind, where it is, its bytes, and the folder to hold while it goes (None: none)."""

    kind: str
    path: Path
    size: int
    held: Path | None


class Found(NamedTuple):
    """What a look below the home found: what may go, what stays and why, and the bytes of each place."""

    leftovers: list[Leftover]
    stays: list[str]
    used: dict[str, int]


def disk_use(root: Path, seconds: float = 3.0) -> tuple[dict[str, int], bool]:
    """Return the bytes below each place of the home that exists, and whether all were counted in that time."""
    end, used = time.monotonic() + seconds, {}
    for place in PLACES:
        if (root / place).is_dir():
            used[place] = 0
            for folder, _, names in os.walk(root / place):
                used[place] += sum(_size(Path(folder) / name) for name in names)
                if time.monotonic() > end:
                    return used, False
    return used, True


def find_leftovers(root: Path, kinds: Iterable[str] = KINDS) -> Found:
    """Look below a home; remove nothing.

    Args:
        root: The home.
        kinds: Keys of KINDS.
    """
    wanted, found = set(kinds), Found([], [], {})
    for place in PLACES:
        if not (root / place).is_dir():
            continue
        found.used[place] = 0
        for where, folders, names in os.walk(root / place):
            folder = Path(where)
            found.used[place] += sum(_size(folder / name) for name in names)
            for left in _leftovers(folder, folders, names, found.stays):
                if left.path.is_dir():  # its files are counted here, and nothing in it is looked at again
                    folders.remove(left.path.name)
                    found.used[place] += left.size
                if left.kind in wanted:
                    found.leftovers.append(left)
    found.leftovers.sort(key=lambda left: (list(KINDS).index(left.kind), -left.size, str(left.path)))
    return found


def _leftovers(folder: Path, folders: list[str], names: list[str], stays: list[str]) -> Iterator[Leftover]:
    """Yield what may go directly below one folder; append to `stays` what looks like it and is not all ours."""
    for name in sorted(folders):
        path = folder / name
        if path.is_symlink():
            continue
        if name == PARTIAL and ".lock" in names:
            if why := _not_partial(path):
                stays.append(f"{path}: {why}")
            else:
                yield Leftover("partial", path, size_of(path), folder)
        elif name in REMOVING and ".lock" in names:
            yield Leftover("temporary", path, size_of(path), folder)
        elif folder.name == "checkpoints" and (folder.parent / "recipe.json").is_file():
            if STEP.fullmatch(name.removeprefix(".").removesuffix(".tmp")) and name.startswith("."):
                yield Leftover("temporary", path, size_of(path), folder.parent)
            elif STEP.fullmatch(name) and (folder.parent / "model/config.json").is_file():
                if why := _not_checkpoint(path):
                    stays.append(f"{path}: {why}")
                else:
                    yield Leftover("checkpoints", path, size_of(path), folder.parent)
    for name in sorted(names):
        path = folder / name
        if not path.is_symlink():
            if folder.name == ".index" and LINES.fullmatch(name):
                yield Leftover("index", path, _size(path), None)
            elif WRITING.fullmatch(name) and ".lock" in names:
                yield Leftover("temporary", path, _size(path), folder)


def _not_partial(path: Path) -> str | None:
    """Say why a `.partial` folder stays; None where all in it is unfinished work of ours."""
    names = sorted(_names(path))
    if odd := [name for name in names if not NOTES.fullmatch(name)]:
        return f"holds {odd[0]}, which is not ours"
    if INSTALLING in names:
        return "is complete and was being put in place; the command that made it finishes that"
    return None


def _not_checkpoint(path: Path) -> str | None:
    """Say why a checkpoint stays; None where it holds what its manifest names, and nothing else."""
    from vlm.train.run.checkpoint import MANIFEST, damage, read_manifest

    if why := damage(path, contents=False):
        return why
    if odd := sorted(_names(path) - {MANIFEST, *read_manifest(path).files}):
        return f"holds {odd[0]}, which its manifest does not name"
    return None


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def size_of(path: Path) -> int:
    """Return the bytes of the files below a folder, links not followed."""
    return sum(_size(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # other commands work meanwhile
        found = path.lstat()
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    return 0


def remove(leftovers: Iterable[Leftover]) -> tuple[int, list[str]]:
    """Remove what was found; return the bytes that went, and what stays because a command works there.

    A folder is renamed first: a kill leaves something that is taken as what a killed command left, never half a
    checkpoint or half a download.
    """
    removed, busy = 0, []
    for kind, path, size, held in leftovers:
        try:
            if held is None:
                path.unlink(missing_ok=True)
            else:
                with locked(held, f"vlm clean {kind}"):
                    _remove(path)
        except LockedError as error:
            busy.append(f"{path}: {error.found}")
            continue
        removed += size
    return removed, busy


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    going = path if path.name.endswith(".tmp") else path.with_name(beside(path.name, ".tmp"))
    if going != path:
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
    shutil.rmtree(going)
    if STEP.fullmatch(path.name) and not any(STEP.fullmatch(name) for name in _names(path.parent)):
        (path.parent / "latest").unlink(missing_ok=True)  # it named one of them
