"""The one gate for paths that are read from a record: where they start, and what outside of it may be read.

MediaRoot(Path("dataset/digits")).locate("images/0.png")
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.home import dataset
from vlm.core.reading import READ_SECONDS, within
from vlm.core.text import printable

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)


@dataclass(frozen=True)
class MediaRoot:
    """The folder that media paths of records start from, and folders outside of it that may be read too.

    A path may be relative or absolute. What it names must lie below `folder`, or below one of `outside`: as the path is
    written, and again after its symbolic links are followed. Links may also lead anywhere below `dataset/` of the home,
    and to where a folder directly in it leads: `vlm data organize` links sets with each other, and large sets lie on
    other disks.

    >>> MediaRoot(Path("/data/set")).locate("images/../images/a.png").name
    'a.png'
    """

    folder: Path
    outside: tuple[Path, ...] = ()

    def locate(self, name: str, where: str = "") -> Path:
        """Return the path of the file that a record names.

        Args:
            name: What the record says.
            where: `file:line` for the error message.

        Raises:
            DataError: The name is an address or holds the bytes themselves, leads outside, or is no name of a file.
        """
        prefix, shown = f"{where}: " if where else "", printable(name, 100)
        if name.startswith("file://"):
            name = name.removeprefix("file://")
        elif name.startswith("data:"):
            raise DataError(f"{prefix}a file in base64 ({shown})", expected="a path", fix="write it to a file")
        elif (found := ADDRESS.match(name)) and name[found.end() :].startswith("//"):
            raise DataError(
                f"{prefix}{shown} is an address", expected="a path", fix="fetch the file: vlm reads no URLs"
            )
        path = self.folder / name
        try:
            if b"\0" in os.fsencode(name):
                raise ValueError(name)  # as a half of a surrogate pair is one
            written = os.path.normpath(path.absolute())
            if not any(_below(written, os.path.normpath(root.absolute())) for root in (self.folder, *self.outside)):
                raise self._refused(prefix, shown, "")
            real = within(READ_SECONDS, written, lambda: _real(path))
            if not any(_below(real, root) for root in self._known()):
                raise self._refused(prefix, shown, f" by a link to {printable(real)}")
        except ValueError as error:
            raise DataError(f"{prefix}no file can be named {shown}", expected="a path", fix="correct it") from error
        return path

    def _known(self) -> tuple[str, ...]:
        return tuple(_resolved(str(root)) for root in (self.folder, *self.outside)) + _linked(str(dataset()))

    def _refused(self, prefix: str, shown: str, how: str) -> DataError:
        return DataError(
            f"{prefix}{shown} leads out of {self.folder}{how}",
            expected="a file below the folder of the media",
            fix="copy the file there, or name its folder: --allow-outside DIR of vlm train and vlm data check",
        )


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _real(path: Path) -> str:
    """Return the path without symbolic links; those of its folder are followed once in a process."""
    path = path.absolute()
    if path.name == "..":
        return os.path.realpath(path)
    real = os.path.join(_resolved(str(path.parent)), path.name)  # noqa: PTH118
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
