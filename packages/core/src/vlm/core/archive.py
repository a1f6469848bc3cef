"""Zip, wheel and tar archives, extracted so that nothing can land outside the target."""

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from vlm.core.catalogue import is_inside
from vlm.core.errors import FetchError

Member = tuple[str, Callable[[], IO[bytes] | None]]


def place(name: str, members: dict[str, str]) -> str | None:
    """Where the archive member `name` goes, by the first pattern that fits it; None when it is not wanted.

    >>> place("pkg/data/train/images/0.png", {"pkg/data/train/*": "train/"})
    'train/images/0.png'
    """
    for pattern, target in members.items():
        if fnmatchcase(name, pattern):
            if target and not target.endswith("/"):
                return target
            fixed = re.split(r"[*?\[]", pattern)[0]
            return target + name[fixed.rfind("/") + 1 :]
    return None


def extract(archive: Path, members: dict[str, str], into: Path) -> list[tuple[Path, str]]:
    """Extract the wanted members below `into`; the whole archive is refused before anything is written if any of its
    names leaves the folder or is a link or device.

    Args:
        members: pattern over member names (`*` crosses folders) -> target path, see `place`.

    Returns:
        (path on disk, name relative to `into`) of each file.

    Raises:
        FetchError: not an archive, a damaged one, an unsafe member, or a pattern that fits nothing.
    """
    with _readable(archive), _opened(archive) as content:
        found = [(target, read) for name, read in content if (target := place(name, members))]
        unused = [p for p in members if not any(fnmatchcase(name, p) for name, _ in content)]
        if unused:
            raise FetchError(f"{archive.name} has no member {', '.join(unused)}", fix="correct the catalogue entry")
        for target, read in found:
            path = into / target
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = read()
            if stream is None:
                raise FetchError(f"{archive.name}: {target} cannot be read")
            with stream, path.open("wb") as f:
                shutil.copyfileobj(stream, f, 1 << 20)
    return [(into / target, target) for target in dict(found)]


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise FetchError(
            f"{archive.name} is damaged or not an archive: {error}", fix="run the same command again"
        ) from error


@contextmanager
def _opened(archive: Path) -> Iterator[list[Member]]:
    """The regular files of a zip or tar archive with a function that opens each; unsafe archives are refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            for info in z.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                _check(archive, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            yield [(i.filename, lambda i=i: z.open(i)) for i in z.infolist() if not i.is_dir()]  # type: ignore[misc]
        return
    with tarfile.open(archive) as t:
        infos = t.getmembers()
        for member in infos:
            _check(archive, member.name, member.isfile() or member.isdir())
        yield [(m.name, lambda m=m: t.extractfile(m)) for m in infos if m.isfile()]  # type: ignore[misc]


def _check(archive: Path, name: str, plain: bool) -> None:
    if not plain or not is_inside(name):
        what = "leaves the folder" if plain else "is a link or a device"
        raise FetchError(
            f"{archive.name}: member {name!r} {what}; nothing was extracted",
            expected="only plain files and folders below the target",
            fix="do not use this archive; tell who published it",
        )
