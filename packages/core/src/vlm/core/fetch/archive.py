"""Zip, wheel and tar archives, also in split parts, extracted so that nothing lands outside the target folder.

    extract([Path("a.tar.gz.partaa"), Path("a.tar.gz.partab")], {"*": ""}, Path(".partial/0"))

Archives are read as a stream. The target is a folder for unfinished work: if the archive is refused, it is removed.
"""

import calendar
import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vlm.core.errors import FetchError, VlmError
from vlm.core.home import beside
from vlm.core.paths import is_control, is_inside
from vlm.core.progress import Report, silent
from vlm.core.reading import check_regular
from vlm.core.spill import Spilled, StoredMap
from vlm.core.text import printable

BLOCK = 1 << 20
"""Bytes that are read, hashed and written at a time."""

RATIO, FREE = 200, 100_000_000
"""An archive may unpack to 200 times its size plus 100 MB: photographs reach 1, text 20, a bomb millions."""

LONGEST_NAME, LONGEST_PATH, DEEPEST = 255, 2000, 200
"""Most bytes of a member's name and path, and most folders in it: disks hold 255 and 4096 bytes with the target's."""

KINDS = {
    b"<!DO": ("a web page", "the address leads to a page (a login, a notice): open it in a browser, fetch the file"),
    b"<htm": ("a web page", "the address leads to a page (a login, a notice): open it in a browser, fetch the file"),
    b"vers": ("a Git LFS pointer", "fetch the file itself: git lfs pull, or the download button of its page"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it with 7z and pack it again as zip or tar"),
    b"Rar!": ("a RAR archive", "unpack it with unrar and pack it again as zip or tar"),
    b"(\xb5/\xfd": ("compressed with zstd", "decompress it first: zstd -d FILE"),
    b"PK\x07\x08": ("a zip in several volumes", "join them first: zip -s 0 FILE.zip --out WHOLE.zip"),
}
"""First four bytes -> what a file is that is no archive read here, and what to do with it."""


@dataclass(frozen=True)
class Member:
    """A regular file of an archive. `mtime` is in seconds; `open` works until the next member is asked for."""

    name: str
    size: int
    mtime: int
    open: Callable[[], IO[bytes] | None]


class JoinedParts(io.RawIOBase):
    """Files read as one, in their order: the parts that a publisher split an archive into."""

    def __init__(self, parts: Sequence[Path]):
        self.sizes = [path.stat().st_size for path in parts]
        self.size, self.at, self.current = sum(self.sizes), 0, (-1, io.BytesIO())
        self.parts: list[Path] = list(parts)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True: a zip is read from its end."""
        return True

    def tell(self) -> int:
        """Return the position in bytes from the start of the first part."""
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, as in any file."""
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, at most to the end of the part at the current position; return the number of bytes."""
        start = 0
        for number, size in enumerate(self.sizes):
            if self.at < start + size:
                if self.current[0] != number:
                    self.current[1].close()
                    self.current = (number, self.parts[number].open("rb"))  # type: ignore[assignment]
                self.current[1].seek(self.at - start)
                done = self.current[1].readinto(buffer)
                self.at += done
                return done
            start += size
        return 0

    def close(self) -> None:
        """Close the part that is open."""
        self.current[1].close()
        super().close()


def target_of(name: str, members: dict[str, str]) -> str | None:
    """Return where an archive member goes, by the first pattern that matches its name; None when it is not wanted.

    >>> target_of("pkg/data/train/images/0.png", {"pkg/data/train/*": "train/"})
    'train/images/0.png'
    """
    for pattern, target in members.items():
        if fnmatchcase(name, pattern):
            if target and not target.endswith("/"):
                return target
            fixed = re.split(r"[*?\[]", pattern)[0]
            return target + name[fixed.rfind("/") + 1 :]
    return None


def extract(
    parts: Path | Sequence[Path],
    members: dict[str, str],
    into: Path,
    report: Report = silent,
    *,
    sums: MutableMapping[str, str] | None = None,
) -> Spilled[tuple[Path, str]]:
    """Extract the wanted members below `into`, which must be a folder for this work alone.

    A file that an earlier, interrupted run finished (same size and time) is not written again. If any member leaves the
    folder, has a name that this program keeps for itself, is a link or device, is there twice, or unpacks to far more
    than the archive, `into` is removed.

    Args:
        parts: An archive, or its pieces in order.
        members: Pattern over member names (`*` crosses folders) -> target path, see `target_of`.
        into: The target folder.
        report: Called with the number of files so far; how many there are is not known.
        sums: Takes the SHA-256 of each file that is written now, by its path: for `install`, which then reads none.

    Returns:
        (path on disk, name relative to `into`) of each file, sorted by name; on the disk beyond some thousands.

    Raises:
        FetchError: Not an archive, a damaged one, an unsafe member, or a pattern that matches no member.
    """
    parts = [parts] if isinstance(parts, Path) else list(parts)
    name = parts[0].name
    for part in parts:
        check_regular(part)
    found, n = StoredMap(), 0
    unused = set(members)
    temporary = into.with_name(beside(into.name, ".member"))
    parents: set[str] = set()
    try:
        with _readable(name), JoinedParts(parts) as joined:
            for member in _members(name, joined):
                if unused:
                    unused -= {pattern for pattern in unused if fnmatchcase(member.name, pattern)}
                if target := target_of(member.name, members):
                    target = str(PurePosixPath(target))
                    if target in found:
                        raise _refused(name, f"two members have the path {target!r}")
                    if (parent := target.rpartition("/")[0]) not in parents:
                        (into / parent).mkdir(parents=True, exist_ok=True)
                        parents.add(parent)
                    path = f"{into}/{target}"
                    digest = _write(member, path, temporary, name)
                    if sums is not None and digest is not None:
                        sums[path] = digest
                    found[target], n = "", n + 1
                    report(n, None)
        if unused:
            raise FetchError(f"{name} has no member {', '.join(sorted(unused))}", fix="correct the catalogue entry")
    except FetchError:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return Spilled((into / target, target) for target in found)


def _write(member: Member, path: str, temporary: Path, archive: str) -> str | None:
    """Write a member in one piece; return its SHA-256, or None where an earlier run has written it.

    `temporary` lies outside the target, where no member can have its name.
    """
    with suppress(FileNotFoundError):
        known = os.stat(path)  # noqa: PTH116  # a hundred thousand Path objects take seconds
        if (known.st_size, int(known.st_mtime)) == (member.size, member.mtime):
            return None
    stream = member.open()
    if stream is None:
        raise FetchError(f"{archive}: {member.name} cannot be read")
    # not flushed: thousands of flushes take minutes, and every file is checked against its sum later
    digest = hashlib.sha256()
    try:
        with stream, temporary.open("wb", buffering=0) as f:
            while chunk := stream.read(BLOCK):
                digest.update(chunk)
                rest = memoryview(chunk)
                while rest:  # a raw file may take a part
                    rest = rest[f.write(rest) :]
            os.utime(f.fileno(), (member.mtime, member.mtime))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


@contextmanager
def _readable(archive: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise FetchError(f"{archive}: two members have the path {error.filename2 or error.filename}") from error
    except VlmError:
        raise
    except NotImplementedError as error:
        raise FetchError(f"{archive} is compressed in a way that Python cannot read: {error}") from error
    except Exception as error:  # what the readers raise on damage is no fixed list
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno not in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
                raise
            raise _refused(archive, "a member has a name that this disk cannot hold") from error
        raise FetchError(
            f"{archive} is damaged or not an archive: {printable(error)}",
            fix="fetch it again: vlm download NAME --verify",
        ) from error


class _StrictInfo(tarfile.TarInfo):
    """A tar header. Only the end mark counts as the end of the archive.

    Python's reader takes a bad header, or the end of the file, for the end of the archive: a lost part would go
    unnoticed.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictInfo":
        """Return the next header.

        Raises:
            tarfile.ReadError: There is neither a header nor the end mark.
        """
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(
                f"{error} at byte {tarfile_.offset}: it is cut short or a part is missing"
            ) from error


def _members(archive: str, joined: JoinedParts) -> Iterator[Member]:
    """Yield the regular files of a zip or tar archive, each checked first."""
    limit = RATIO * joined.size + FREE
    with ExitStack() as stack:
        start = joined.read(4)
        if start in (b"PK\x03\x04", b"PK\x05\x06"):
            z = stack.enter_context(zipfile.ZipFile(io.BufferedReader(joined)))
            infos = z.infolist()
            names = [_zip_name(info) for info in infos]
            for info, name in zip(infos, names, strict=True):  # the directory is known before anything is read
                kind = stat.S_IFMT(info.external_attr >> 16)
                _check(archive, name, kind in (0, stat.S_IFREG, stat.S_IFDIR), folder=name.endswith("/"))
            _check_size(archive, sum(info.file_size for info in infos), limit)
            if sum(info.compress_size for info in infos) > joined.size:
                raise _refused(archive, "its members overlap, or it is cut short")
            for info, name in zip(infos, names, strict=True):
                if not name.endswith("/"):
                    name = str(PurePosixPath(name))
                    yield Member(name, info.file_size, _seconds(info), lambda i=info: z.open(i))  # type: ignore[misc]
            return
        if start in KINDS:
            what, fix = KINDS[start]
            raise FetchError(f"{archive} is {what}, not a zip or tar archive", fix=fix)
        joined.seek(0)
        total = 0
        stream = io.BufferedReader(joined, 1 << 20)
        t = stack.enter_context(tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictInfo))
        while (item := t.next()) is not None:
            t.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it has read
            _check(archive, item.name, (item.isfile() and not item.issparse()) or item.isdir(), folder=item.isdir())
            total += item.size
            _check_size(archive, total, limit)
            if item.isfile():
                name = str(PurePosixPath(item.name))
                when = int(max(0, min(item.mtime, 2**31)))
                yield Member(name, item.size, when, lambda i=item: t.extractfile(i))  # type: ignore[misc]


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a zip's member as written, with slashes for the backslashes of some Windows tools.

    Without the flag for UTF-8 nothing says whether other bytes than ASCII are UTF-8, GBK, CP932 or another page, and
    Python reads code page 437. Characters of three or four bytes in UTF-8 are hardly ever anything else and are read;
    shorter ones are (GBK of the Chinese for "picture" is valid UTF-8) and become surrogates, which `_check` refuses.
    """
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        data = name.encode("cp437")
        name = data.decode("utf-8", "surrogateescape")
        if any("\x80" <= character < "\u0800" for character in name):
            name = data.decode("ascii", "surrogateescape")
    return name.replace("\\", "/")


def _seconds(info: zipfile.ZipInfo) -> int:
    """Return the time of a zip's member; months that do not exist (a date of 0 or 0xFFFF) become the nearest one."""
    year, month, *rest = (max(1, number) for number in info.date_time)
    return calendar.timegm((year, min(month, 12), *rest, 0, 0, 0))


def _check(archive: str, name: str, plain: bool, *, folder: bool) -> None:
    shown = ascii(name if len(name) <= 80 else f"{name[:80]}...")
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain:
        raise _refused(archive, f"member {shown} is a link or a device")
    if not is_inside(str(path)) or not is_inside(name.replace("\\", "/")):
        raise _refused(archive, f"member {shown} leaves the folder")
    if "\\" in name:
        raise _refused(archive, f"member {shown} has a backslash in its name")
    if not (path.parts or folder):
        raise _refused(archive, f"member {shown} has no file name")
    if is_control(name):
        raise _refused(archive, f"member {shown} has a name that this program keeps for itself")
    try:
        sizes = [len(part.encode()) for part in path.parts]
    except UnicodeEncodeError as error:
        fix = "unpack it with the publisher's code page (unzip -O GBK or -O CP932) and pack it again"
        raise _refused(archive, f"the name of member {shown} is not UTF-8", fix) from error
    if max(sizes, default=0) > LONGEST_NAME or sum(sizes) > LONGEST_PATH or len(sizes) > DEEPEST:
        raise _refused(archive, f"member {shown} has a name or path that is too long for a disk")


def _check_size(archive: str, total: int, limit: int) -> None:
    if total > limit:
        raise _refused(archive, f"it unpacks to more than {limit} bytes, {RATIO} times its size: an archive bomb")


def _refused(archive: str, why: str, fix: str = "do not use this archive; tell its publisher") -> FetchError:
    return FetchError(
        f"{archive}: {why}; nothing was extracted",
        expected="only plain files and folders below the target, each once",
        fix=fix,
    )
