"""One file over the network: ranged resume, retries with back-off, size and checksum verified.

fetch_url("https://example.org/a.zip", Path("a.zip"), sha256="fcb5...")
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from vlm.core.errors import FetchError
from vlm.core.fetch.manifest import sha256_of
from vlm.core.progress import Report, silent
from vlm.core.retry import Backoff

BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses worth another try."""


@dataclass(frozen=True)
class Patience:
    """When to give up on a download.

    `tries`: attempts in a row without a new byte. After k of them the pause is `backoff`·2^k seconds, at most
    `longest`. `timeout` is the longest wait in seconds for a single answer.
    """

    tries: int = 6
    backoff: float = 1.0
    longest: float = 60.0
    timeout: float = 30.0


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
        raise FetchError(f"cannot write below {folder}: {error.strerror}", fix=fix) from error


def fetch_url(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    patience: Patience = Patience(),
    report: Report = silent,
) -> Path:
    """Fetch `url` (http, https or file) to `path`; an interrupted `path`.part is continued.

    Args:
        url: The address.
        path: The target.
        sha256: Expected checksum, if it is known.
        size: Expected bytes, if they are known.
        patience: When to give up.
        report: Called with the bytes done and in total.

    Returns:
        `path`.

    Raises:
        FetchError: No network, a refusal, or a file of another size or checksum (then the bad copy is removed).
    """
    long = len(os.fsencode(path.name)) > 240  # a name has 255 bytes, and `.part.etag` needs ten
    part = path.with_name((hashlib.sha256(os.fsencode(path.name)).hexdigest() if long else path.name) + ".part")
    if path.exists() and _fault(path, sha256, size) is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    for fresh in (False, True):
        resumed = not fresh and part.exists()
        if urlsplit(url).scheme == "file":
            _copy(url, part)
        else:
            _download(url, part, size, patience, report)
        fault = _fault(part, sha256, size)
        part.with_name(f"{part.name}.etag").unlink(missing_ok=True)
        if fault is None:
            part.replace(path)
            return path
        part.unlink()
        if not resumed:  # a continued file may mix two versions: that alone deserves one fresh start
            break
    raise FetchError(
        f"{url}: {fault}", fix="rerun the same command; if the error persists, the publisher replaced the file"
    )


def _fault(path: Path, sha256: str | None, size: int | None) -> str | None:
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size} bytes\n  expected: {size} bytes"
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        return f"sha256 {found}\n  expected: {sha256}"
    return None


def _copy(url: str, part: Path) -> None:
    origin = Path(unquote(urlsplit(url).path))
    if not origin.is_file():
        raise FetchError(f"no such file: {origin}", fix="correct the address in the catalogue entry")
    shutil.copyfile(origin, part)


def _download(url: str, part: Path, size: int | None, patience: Patience, report: Report) -> None:
    # after k failures in a row the pause is `backoff`·2^k; `Backoff` halves its first one after progress
    best, retry = _length(part), Backoff(patience.tries, 2 * patience.backoff, patience.longest)
    with httpx.Client(follow_redirects=True, timeout=patience.timeout) as client:
        while size is None or _length(part) != size:
            wait, why = 0.0, f"cut off at {_length(part)} of {size} bytes"
            try:
                _attempt(client, url, part, size, report)
                if size is None or _length(part) >= size:
                    return
            except _Again as again:
                wait, why = again.wait, str(again)
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise FetchError(f"{url}: {error}", fix="correct the address in the catalogue entry") from error
            more, best = _length(part) > best, max(best, _length(part))  # a new byte is progress
            if not retry.again(asked=wait, progress=more):
                raise FetchError(
                    f"{url}: {why} ({retry.failures} tries)",
                    expected="a reachable server",
                    fix="check the network and the proxy settings, then rerun the same command: it resumes here",
                )


def _attempt(client: httpx.Client, url: str, part: Path, size: int | None, report: Report) -> None:
    have, note = _length(part), part.with_name(f"{part.name}.etag")
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    if have and note.exists():
        headers["If-Range"] = note.read_text()  # the server sends the whole file if it is another one now
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status == 416:  # our part is longer than the file: start over
            part.unlink()
            raise _Again("the server refused to continue")
        if status in BUSY:
            after = response.headers.get("Retry-After", "")
            raise _Again(f"the server answered {status}", float(after) if after.isdigit() else 0.0)
        if status not in (200, 206):
            fix = "log in or accept the license on its page" if status in (401, 403) else "check the address"
            raise FetchError(f"{url}: the server answered {status}", expected="200", fix=fix)
        resumed = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        done = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = size or (done + int(length) if length.isdigit() else None)
        note.unlink(missing_ok=True)
        if (tag := response.headers.get("ETag", "")).startswith('"'):  # a weak tag does not identify the bytes
            note.write_text(tag)
        with part.open("ab" if resumed else "wb") as f:
            for chunk in response.iter_raw():
                f.write(chunk)
                f.flush()
                done += len(chunk)
                report(done, total)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
