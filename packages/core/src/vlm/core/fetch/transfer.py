"""One file over the network: ranged resume, retries with back-off, size and checksum verified.

    fetch_url("https://example.org/a.zip", Path("a.zip"), sha256="fcb5...")

No more bytes are read than the catalogue or the server announced, without either `LARGEST`.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from vlm.core.errors import FetchError
from vlm.core.fetch.manifest import sha256_of
from vlm.core.net import exchange, network_fix, open_client, reason_of, retry_after
from vlm.core.progress import Report, human_bytes, silent
from vlm.core.retry import Backoff
from vlm.core.text import printable

BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses worth another try."""

LARGEST = 1 << 38
"""Most bytes (275 GB) of a file whose size neither the catalogue nor the server announces."""

PROGRESS = 1 << 16
"""New bytes after which an attempt counts as progress: a server that sends a few each time is given up."""

BLOCK = 1 << 20
"""Bytes that are read at a time where a part is hashed that is on the disk."""

PAGES = (b"<!doctype html", b"<html")
PAGE_NAMES = (".html", ".htm", ".xhtml")
"""How a web page starts, and the names of files that are meant to be one."""


@dataclass(frozen=True)
class Patience:
    """When to give up on a download.

    `tries`: attempts in a row without progress (64 KiB). After k of them the pause is `backoff`·2^k seconds, at most
    `longest`. `timeout` is the longest wait in seconds for an answer to begin and for the next bytes. An attempt that
    brings less than `slowest` bytes a second, over `window` seconds, ends.
    """

    tries: int = 6
    backoff: float = 1.0
    longest: float = 60.0
    timeout: float = 30.0
    slowest: float = 1000.0
    window: float = 60.0


class _Again(Exception):
    """The server asks for another try, after `wait` seconds if it names them."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the OSError of a full or unwritable disk into a FetchError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fix = "free some space or set VLM_HOME to another disk, then rerun the same command: it resumes here"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            fix = "make the folder writable or set VLM_HOME to one that is"
        elif error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
            fix = "a file name is one that this disk cannot hold; set VLM_HOME to another disk or a shorter path"
        else:
            raise
        named = error.filename if isinstance(error.filename, str) else ""
        other = f" ({printable(named)})" if named and not Path(named).is_relative_to(folder) else ""
        raise FetchError(f"cannot write below {folder}: {error.strerror}{other}", fix=fix) from error


def fetch_url(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    patience: Patience = Patience(),
    report: Report = silent,
    sums: MutableMapping[str, str] | None = None,
) -> Path:
    """Fetch `url` (http, https or file) to `path`; an interrupted `path`.part is continued.

    Args:
        url: The address.
        path: The target.
        sha256: Expected checksum, if it is known.
        size: Expected bytes, if they are known.
        patience: When to give up.
        report: Called with the bytes done and in total.
        sums: Takes the SHA-256 of the file by its path, where it was computed here: for `install`.

    Returns:
        `path`.

    Raises:
        FetchError: No network, a refusal, or a file of another size or checksum (then the bad copy is removed).
    """
    long = len(os.fsencode(path.name)) > 240  # a name has 255 bytes, and `.part.etag` needs ten
    part = path.with_name((hashlib.sha256(os.fsencode(path.name)).hexdigest() if long else path.name) + ".part")
    if path.exists() and _fault(path, sha256, size) is None:
        if sums is not None and sha256 is not None:
            sums[str(path)] = sha256
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    for fresh in (False, True):
        resumed, digest = not fresh and part.exists(), RunningDigest(part)
        if urlsplit(url).scheme == "file":
            _copy(url, part)
        else:
            _download(url, part, size, patience, report, digest if sha256 or sums is not None else None)
        found = digest.of_whole()
        fault = _fault(part, sha256, size, found)
        part.with_name(f"{part.name}.etag").unlink(missing_ok=True)
        if fault is None:
            part.replace(path)
            if sums is not None and (known := found or sha256):
                sums[str(path)] = known
            return path
        part.unlink()
        if not resumed:  # a continued file may mix two versions: that alone deserves one fresh start
            break
    raise FetchError(
        f"{url}: {fault}", fix="rerun the same command; if the error persists, the publisher replaced the file"
    )


class RunningDigest:
    """The SHA-256 of a file while it is written: what an earlier run left there is read once, and nothing twice."""

    def __init__(self, path: Path):
        self.path, self.at, self.sum = path, 0, hashlib.sha256()

    def start(self, at: int) -> None:
        """Stand at the byte from which writing continues."""
        if at == self.at and at:
            return
        self.at, self.sum = 0, hashlib.sha256()
        if at:
            with self.path.open("rb") as f:
                while self.at < at and (block := f.read(min(BLOCK, at - self.at))):
                    self.add(block)

    def add(self, data: bytes) -> None:
        """Take the bytes that were written next."""
        self.sum.update(data)
        self.at += len(data)

    def of_whole(self) -> str | None:
        """Return the hexadecimal digest; None where other bytes are in the file than went through here."""
        return self.sum.hexdigest() if self.at and self.at == _length(self.path) else None


def _fault(path: Path, sha256: str | None, size: int | None, found: str | None = None) -> str | None:
    """Return what is wrong with a file. `found`: its SHA-256, where it is known already."""
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size} bytes\n  expected: {size} bytes"
    if sha256 is not None and (found := found or sha256_of(path)) != sha256:
        return f"sha256 {found}\n  expected: {sha256}"
    return None


def _copy(url: str, part: Path) -> None:
    origin = Path(unquote(urlsplit(url).path))
    if not origin.is_file():
        raise FetchError(f"no such file: {origin}", fix="correct the address in the catalogue entry")
    shutil.copyfile(origin, part)


def _download(
    url: str, part: Path, size: int | None, patience: Patience, report: Report, digest: RunningDigest | None
) -> None:
    # after k failures in a row the pause is `backoff`·2^k; `Backoff` halves its first one after progress
    best, retry = _length(part), Backoff(patience.tries, 2 * patience.backoff, patience.longest)
    if size is not None and best > size:  # of an earlier entry
        part.unlink()
        best = 0
    with open_client(url, follow_redirects=True, timeout=patience.timeout) as client:
        while size is None or _length(part) != size:
            wait, why = 0.0, f"cut off at {_length(part)} of {size} bytes"
            fix = "check the network and the proxy settings, then rerun the same command"
            try:
                _attempt(client, url, part, size, patience, report, digest)
                if size is None or _length(part) >= size:
                    return
            except _Again as again:
                wait, why = again.wait, str(again)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise FetchError(f"{url}: {error}", fix="correct the address in the catalogue entry") from error
            except httpx.TransportError as error:
                why, fix = reason_of(error, url), network_fix(error, url)
            more = _length(part) >= best + PROGRESS
            best = max(best, _length(part)) if more else best
            if not retry.again(asked=wait, progress=more):
                raise FetchError(
                    f"{url}: {why} ({retry.failures} tries)",
                    expected="a reachable server",
                    fix=f"{fix}: it resumes here",
                )


def _attempt(
    client: httpx.Client,
    url: str,
    part: Path,
    size: int | None,
    patience: Patience,
    report: Report,
    digest: RunningDigest | None,
) -> None:
    have, note = _length(part), part.with_name(f"{part.name}.etag")
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    if have and note.exists():
        headers["If-Range"] = note.read_text()  # the server sends the whole file if it is another one now
    with exchange(client, "GET", url, seconds=2 * patience.timeout, headers=headers) as (response, watch):
        status = response.status_code
        if status == 416 and have:  # our part is longer than the file: start over
            part.unlink()
            raise _Again("the server refused to continue")
        if status in BUSY:
            raise _Again(f"the server answered {status}", retry_after(response) or 0.0)
        if status not in (200, 206):
            raise _refused(url, status)
        if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)  # bytes of another place: the next attempt asks for the whole file
            raise _Again("the server sent another part than was asked for")
        done = have if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        announced = done + int(length) if length.isascii() and length.isdigit() else None
        limit = _limit(url, part, done, size, announced)
        _refuse_encoding(url, response, size)
        note.unlink(missing_ok=True)
        tag = response.headers.get("ETag", "")
        if tag.startswith('"') and tag.isascii() and tag.isprintable():  # a weak tag does not identify the bytes
            note.write_text(tag)
        due = done + patience.slowest * patience.window
        watch.more(patience.window)
        if digest is not None:
            digest.start(done)
        with part.open("ab" if status == 206 else "wb") as f:
            for chunk in response.iter_raw():
                if done == 0:
                    _refuse_page(url, chunk)
                kept = chunk[: limit - done]
                f.write(kept)
                f.flush()
                if digest is not None:
                    digest.add(kept)
                done += len(chunk)
                if done > limit:
                    part.unlink()
                    raise _too_much(url, limit)
                if done >= due:
                    due = done + patience.slowest * patience.window
                    watch.more(patience.window)
                report(done, size or announced)


def _refused(url: str, status: int) -> FetchError:
    fixes = {
        401: "log in or accept the license on its page, then fetch the file in a browser",
        403: "log in or accept the license on its page; a proxy may refuse the address too",
        407: "the proxy wants a name and a password: http://NAME:PASSWORD@HOST:PORT",
    }
    fix = fixes.get(status, "check the address")
    return FetchError(f"{url}: the server answered {status}", expected="200", fix=fix)


def _limit(url: str, part: Path, done: int, size: int | None, announced: int | None) -> int:
    """Return the most bytes to write. Raises FetchError when more are announced than expected, or than the disk has."""
    if size is not None and announced is not None and announced > size:
        raise _too_much(url, size)
    limit = size if size is not None else announced if announced is not None else LARGEST
    free = shutil.disk_usage(part.parent).free
    if (size is not None or announced is not None) and limit - done > free:
        raise FetchError(
            f"{url} has {human_bytes(limit)}, and {part.parent} has {human_bytes(free)} left",
            fix="free some space or set VLM_HOME to another disk, then rerun the same command: it resumes here",
        )
    return limit


def _too_much(url: str, limit: int) -> FetchError:
    return FetchError(
        f"{url}: the server sends more than {limit} bytes",
        expected=f"{limit} bytes",
        fix="rerun the same command; if the error persists, the publisher replaced the file",
    )


def _refuse_encoding(url: str, response: httpx.Response, size: int | None) -> None:
    """Refuse bytes that a server compressed unasked: nothing would tell them from the file's own."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity") or size is not None or urlsplit(url).path.endswith((".gz", ".tgz")):
        return  # a known size is checked; some servers call a .gz file itself compressed
    raise FetchError(
        f"{url}: the server compresses the file ({printable(encoding, 40)}) although it was not asked to",
        expected="the file as it is",
        fix="fetch it in a browser, or give its size and sha256 in the catalogue entry",
    )


def _refuse_page(url: str, start: bytes) -> None:
    """Refuse a web page (a login, a notice of a proxy) that comes with status 200 in place of a file."""
    if start.lstrip()[:14].lower().startswith(PAGES) and not urlsplit(url).path.lower().endswith(PAGE_NAMES):
        raise FetchError(
            f"{url} leads to a web page, not to the file",
            expected="the file itself",
            fix="open the address in a browser (a login, a license, a proxy's notice), then rerun the same command",
        )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
