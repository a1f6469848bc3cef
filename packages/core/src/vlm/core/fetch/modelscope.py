"""A snapshot of a ModelScope repository: its list of files names size and SHA-256 of each, and each is held to them.

Its protocol for downloads is two addresses, a list of files and a file. They are asked through `fetch_url`, which
continues, checks and gives up as for every other download; the site's own client keeps state in the user's home, probes
for cloud regions, and has retries and limits of its own. MODELSCOPE_ENDPOINT chooses another site, as for that client.
"""

import json
import os
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
from pydantic import TypeAdapter, ValidationError

from vlm.core.errors import ConfigError, FetchError
from vlm.core.fetch.archive import target_of
from vlm.core.fetch.catalogue import ModelScopeSource, Sha256
from vlm.core.fetch.manifest import refuse_name
from vlm.core.fetch.transfer import BUSY, Patience, fetch_url
from vlm.core.net import TooLarge, exchange, network_fix, open_client, read_body, reason_of
from vlm.core.progress import Report, Tally
from vlm.core.retry import Backoff
from vlm.core.text import printable

SITE = "https://www.modelscope.cn"
LONGEST_LIST = 1 << 26
"""Most bytes of a list of files."""


@dataclass(frozen=True)
class ListedFile:
    """What a list of files says of one: `revision` is the commit that changed it last, at `time` (Unix seconds)."""

    path: str
    size: int
    sha256: Sha256
    revision: str
    time: float


def fetch_modelscope(
    source: ModelScopeSource,
    work: Path,
    report: Report,
    *,
    jobs: int = 4,
    patience: Patience = Patience(),
    sums: MutableMapping[str, str] | None = None,
) -> list[tuple[Path, str]]:
    """Download the files of `source` at its revision below `work`; an interrupted download continues there.

    Args:
        source: The repository, its revision and the files to take.
        work: Folder for this work alone.
        report: Called with the bytes done and in total.
        jobs: Files to download at a time.
        patience: When to give up.
        sums: As in `fetch_url`.

    Returns:
        (path on disk, name below the entry's folder) of each file.

    Raises:
        FetchError: No network, an unknown repository or revision, a file of another size or checksum.
    """
    wanted = [f for f in list_files(source, patience) if not source.files or _matches(f.path, source.files)]
    absent = [pattern for pattern in source.files if not any(fnmatchcase(f.path, pattern) for f in wanted)]
    if absent or not wanted:
        raise FetchError(
            f"{source.repo}@{source.revision} has no file {', '.join(absent)}".rstrip(),
            fix="look at the repository's file list, then correct the entry or --revision",
        )
    for file in wanted:
        refuse_name(file.path, source.repo)
        known = source.known.get(file.path)
        if known and (known.sha256 not in (None, file.sha256) or known.size not in (None, file.size)):
            raise FetchError(
                f"{source.repo} holds another {file.path} than the catalogue knows: sha256 {file.sha256}",
                expected=f"sha256 {known.sha256}, {known.size} bytes",
                fix="take it from the hub: leave out --source",
            )
    tally = Tally(report, parts=len(wanted), total=sum(file.size for file in wanted))

    def one(number: int) -> Path:
        file = wanted[number]
        return fetch_url(
            file_address(source, file.path),
            work / file.path,
            sha256=file.sha256,
            size=file.size,
            patience=patience,
            report=tally.part(number),
            sums=sums,
        )

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number) for number in range(len(wanted))]
        try:
            paths = [future.result() for future in futures]
        finally:  # an error or Ctrl-C: the others stop at their next bytes
            tally.stop()
            pool.shutdown(cancel_futures=True)
    return [(path, target_of(f.path, source.place) or f.path) for path, f in zip(paths, wanted, strict=True)]


def newest_commit(source: ModelScopeSource, patience: Patience = Patience()) -> str:
    """Return the commit that a branch is at: the one that changed a file last. Raises FetchError."""
    return max(list_files(source, patience), key=lambda file: file.time).revision


def list_files(source: ModelScopeSource, patience: Patience) -> list[ListedFile]:
    """Return the files of a repository at a revision.

    Raises:
        FetchError: No network, no such repository or revision, or an answer that is no list of files.
    """
    address = f"{endpoint()}/api/v1/models/{source.repo}/repo/files?" + urlencode(
        {"Revision": source.revision or "master", "Recursive": "True"}
    )
    try:
        listed = json.loads(_ask(address, source, patience))["Data"]["Files"]
        blobs = [one for one in listed if one["Type"] != "tree"]
        files = TypeAdapter(list[ListedFile]).validate_python([_listed(one) for one in blobs])
    except (ValueError, ValidationError, LookupError, TypeError, RecursionError) as error:
        raise FetchError(
            f"{source.repo}: the answer of {endpoint()} cannot be read: {type(error).__name__}",
            expected="a list of files with size and SHA-256",
            fix=f"open {endpoint()} in a browser; check the proxy and MODELSCOPE_ENDPOINT, then rerun the same command",
        ) from error
    if not files:
        raise FetchError(f"{source.repo}@{source.revision} on ModelScope holds no files", fix="correct --revision")
    return files


def _listed(one: dict[str, Any]) -> dict[str, Any]:
    names = {"path": "Path", "size": "Size", "sha256": "Sha256", "revision": "Revision", "time": "CommittedDate"}
    return {ours: one[theirs] for ours, theirs in names.items()}


def endpoint() -> str:
    """Return the address of the site.

    Raises:
        ConfigError: MODELSCOPE_ENDPOINT is no address.
    """
    given = os.environ.get("MODELSCOPE_ENDPOINT", SITE).rstrip("/")
    if not given.startswith(("http://", "https://")):
        fix = f"export MODELSCOPE_ENDPOINT=https://{printable(given)}"
        raise ConfigError(f"MODELSCOPE_ENDPOINT={printable(given)} is no address", expected="https://HOST", fix=fix)
    return given


def file_address(source: ModelScopeSource, name: str) -> str:
    """Return the address of a file of a repository at its revision."""
    asked = urlencode({"Revision": source.revision or "master", "FilePath": name})
    return f"{endpoint()}/api/v1/models/{source.repo}/repo?{asked}"


def _ask(address: str, source: ModelScopeSource, patience: Patience) -> bytes:
    """Return the body of an answer; busy servers and cut connections are asked again."""
    backoff = Backoff(tries=patience.tries, first=patience.backoff, longest=patience.longest)
    with open_client(address, follow_redirects=True, timeout=patience.timeout) as client:
        while True:
            try:
                with exchange(client, "GET", address, seconds=4 * patience.timeout) as (response, _):
                    status = response.status_code
                    if status == 200:
                        return read_body(response, LONGEST_LIST)
                if status not in BUSY or not backoff.again():
                    raise _refusal(source, status)
            except (httpx.HTTPError, OSError) as error:
                if not backoff.again():
                    raise FetchError(
                        f"{source.repo}: ModelScope cannot be reached: {reason_of(error, address)}",
                        fix=network_fix(error, address),
                    ) from error
            except TooLarge as error:
                raise FetchError(f"{source.repo}: the list of files of {endpoint()} has {error}") from error


def _refusal(source: ModelScopeSource, status: int) -> FetchError:
    if status in (400, 401, 403, 404):
        return FetchError(
            f"ModelScope has no repository {source.repo} with the revision {source.revision or 'master'} ({status})",
            fix="look at its page; or take it from the hub: leave out --source",
        )
    return FetchError(f"{source.repo}: {endpoint()} answered {status}", fix="wait, then rerun the same command")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
