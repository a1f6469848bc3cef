"""The one gate for paths that are read from a record: where they start, and what outside of it may be read.

MediaRoot(Path("dataset/digits")).refusal("../secret.png")    # 'leads out of dataset/digits; ...'
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlm.core.home import dataset
from vlm.core.reading import READ_SECONDS, within
from vlm.core.text import printable


@dataclass(frozen=True)
class MediaRoot:
    """The folder that media paths of records start from, and folders outside of it that may be read too.

    A path may be relative or absolute. What it names must lie below `folder`, or below one of `outside`: as the path is
    written, and again after its symbolic links are followed. Links may also lead anywhere below `dataset/` of the home,
    and to where a folder directly in it leads: `vlm data organize` links sets with each other, and large sets lie on
    other disks.

    >>> MediaRoot(Path("/data/set")).refusal("images/../images/a.png") is None
    True
    """

    folder: Path
    outside: tuple[Path, ...] = ()

    @classmethod
    def of(cls, root: "Path | MediaRoot") -> "MediaRoot":
        """Return `root`, or the gate around a folder."""
        return root if isinstance(root, MediaRoot) else cls(root)

    def refusal(self, name: str) -> str | None:
        """Return why the file that a record names must not be read, or None.

        Args:
            name: What the record says; it can be the path of a file (no NUL, no half of a surrogate pair).

        Raises:
            DataError: The disk does not answer.
        """
        path = os.path.join(_absolute(self.folder), name)  # noqa: PTH118  # called for each file of a set
        how = f"{printable(name, 70)} leads out of {printable(self.folder, 80)}"
        if _below(os.path.normpath(path), map(_absolute, (self.folder, *self.outside))):
            real = within(READ_SECONDS, path, lambda: _real(path))
            if _below(real, (_resolved(_absolute(root)) for root in (self.folder, *self.outside))):
                return None
            if _below(real, _linked(str(dataset()))):
                return None
            how += f" by a link to {printable(real, 80)}"
        return how + "; --allow-outside DIR allows another folder"


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _absolute(folder: Path) -> str:
    return os.path.normpath(folder if folder.is_absolute() else Path.cwd() / folder)


def _real(path: str) -> str:
    """Return the path without symbolic links; those of its folder are followed once in a process."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    real = os.path.join(_resolved(folder), name)  # noqa: PTH118
    return os.path.realpath(real) if os.path.islink(real) else real  # noqa: PTH114


@lru_cache(1 << 14)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


@lru_cache(8)
def _linked(sets: str) -> tuple[str, ...]:
    """Return where the folder of all sets and each link directly in it lead."""
    with_links = [sets]
    if os.path.isdir(sets):  # noqa: PTH112
        with os.scandir(sets) as entries:
            with_links += [entry.path for entry in entries if entry.is_symlink()]
    return tuple(os.path.realpath(folder) for folder in with_links)
