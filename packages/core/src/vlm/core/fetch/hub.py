"""A pinned snapshot of a hub repository, checked against the checksums that the hub announces."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlm.core.errors import FetchError, VlmError
from vlm.core.fetch.archive import target_of
from vlm.core.fetch.catalogue import HubSource
from vlm.core.fetch.manifest import files_below, refuse_name, sha256_of
from vlm.core.home import split_lines
from vlm.core.net import is_loopback, network_fix, reason_of, refuse_proxies
from vlm.core.progress import Report, bytes_below
from vlm.core.text import printable

COMMIT = re.compile("[0-9a-f]{40}")

SLACK = 1 << 24
"""Bytes that a download may hold on disk beyond what the hub announced: notes of its client, metadata."""

UNKNOWN = 1 << 40
"""Most bytes (1.1 TB) of a repository whose sizes the hub does not announce."""

STALL, LEAST = 300.0, 1 << 16
"""A download ends that brings less than LEAST bytes in STALL seconds."""


def fetch_hub(source: HubSource, work: Path, report: Report, *, jobs: int = 4) -> list[tuple[Path, str]]:
    """Download the files of `source` at its revision below `work`; an interrupted download continues there.

    Token, endpoint and offline mode are those of huggingface-hub (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).

    Args:
        source: The repository, its revision and the files to take.
        work: Folder for this work alone.
        report: Called with the bytes done and in total.
        jobs: Files to download at a time.

    Returns:
        (path on disk, name below the entry's folder) of each file.

    Raises:
        FetchError: No network, an unknown repository or revision, a license to accept, or a damaged file.
    """
    from huggingface_hub import snapshot_download  # not at the top: it costs a third of a second

    with _hub_errors(source), _watched(work, report) as announce:
        about = _ask(source)
        siblings = [s for s in about.siblings or [] if _wanted(s.rfilename, source.files)]
        for sibling in siblings:
            refuse_name(sibling.rfilename, source.repo)
        total = sum(s.size or 0 for s in siblings)
        announce(total, all(s.size is not None for s in siblings))
        snapshot_download(
            source.repo,
            repo_type=source.repo_type,
            revision=source.revision,
            local_dir=work,
            allow_patterns=list(source.files) or None,
            max_workers=jobs,
        )
    staged = files_below(work)
    names = [name for _, name in staged]
    absent = [pattern for pattern in source.files if not any(fnmatchcase(name, pattern) for name in names)]
    if absent or not staged:
        raise FetchError(
            f"{source.repo}@{source.revision} has no file {', '.join(absent)}".rstrip(),
            fix="look at the repository's file list, then correct the entry or --revision",
        )
    notes = work / ".cache" / "huggingface" / "download"
    damaged = [name for path, name in staged if _is_damaged(source, path, name, notes / f"{name}.metadata")]
    if damaged:
        raise FetchError(
            f"{source.repo}: {', '.join(damaged)} arrived damaged",
            expected="the size and sha256 that the catalogue and the hub announce",
            fix="rerun the same command: only these files are fetched again",
        )
    report(total, total)
    return [(path, target_of(name, source.place) or name) for path, name in staged]


def _wanted(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def resolve_commit(source: HubSource) -> str:
    """Return the commit that a repository's branch is at now: `source.revision`, by default its main one.

    Raises:
        FetchError: As in `fetch_hub`.
    """
    with _hub_errors(source):
        commit = _ask(source).sha
        if not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
            raise ValueError("the hub names no commit")
        return commit


def _ask(source: HubSource) -> Any:
    """Return what the hub says of a repository at a revision, sizes included."""
    from huggingface_hub import HfApi

    ask = HfApi().dataset_info if source.repo_type == "dataset" else HfApi().model_info
    return ask(source.repo, revision=source.revision, files_metadata=True)


@contextmanager
def _watched(work: Path, report: Report) -> Iterator[Callable[[int, bool], None]]:
    """Report the bytes below `work` twice a second while the hub client writes them, unfinished files included.

    Yields a function that takes the bytes that were announced, and whether all are known. When there are more on disk,
    or hardly any come, the client's connections are closed.
    """
    from huggingface_hub import close_session

    done, limits, before = threading.Event(), [0, UNKNOWN], bytes_below(work)
    ended: list[str] = []

    def watch() -> None:
        had, since = before, time.monotonic()
        while not done.wait(0.5):
            have, now = bytes_below(work), time.monotonic()
            report(min(have, limits[0]), limits[0])
            if have >= had + LEAST:
                had, since = have, now
            if have > limits[1]:
                ended[:] = [f"the server sends more than the {limits[0]} bytes that it announced"]
            elif now - since > STALL:
                ended[:] = [f"too slow: less than {LEAST} bytes in {STALL:g} s"]
            if ended:
                with suppress(Exception):  # its own faults show in the thread that downloads
                    close_session()

    def announce(total: int, known: bool) -> None:
        limits[:] = [total, before + total + SLACK if known else UNKNOWN]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield announce
    except VlmError:
        raise
    except Exception as error:
        if ended:
            raise FetchError(
                ended[0], fix="rerun the same command; if the error persists, use another server"
            ) from error
        raise
    finally:
        done.set()
        thread.join()


@contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    """Turn every error of the hub's client, and of the HTTP library that it happens to use, into one of ours."""
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    if not endpoint.startswith(("http://", "https://")):
        raise FetchError(
            f"HF_ENDPOINT={printable(endpoint)} is no address",
            expected="https://HOST",
            fix=f"export HF_ENDPOINT=https://{printable(endpoint)}",
        )
    if not is_loopback(endpoint):
        refuse_proxies()
    try:
        yield
    except VlmError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise _as_ours(source, error, endpoint) from error


def _as_ours(source: HubSource, error: Exception, endpoint: str) -> FetchError:
    """Return what went wrong on the hub, with what to do."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, errors.LocalEntryNotFoundError | errors.IncompleteSnapshotError) and error.__cause__:
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    repo, text = source.repo, str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    again = "then rerun the same command: it resumes here"
    if constants.HF_HUB_OFFLINE:
        return FetchError(f"{repo}: the hub cannot be reached: HF_HUB_OFFLINE is set", fix="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.GatedRepoError):
        return FetchError(f"{repo} is gated", fix="accept its license on its page, then `hf auth login`")
    if isinstance(error, errors.DisabledRepoError):
        return FetchError(f"{repo} was disabled by the hub", fix="look at its page for the reason")
    if status == 401 and get_token() and not re.search("not found|not exist", text, re.IGNORECASE):
        return FetchError(
            f"{repo}: the hub does not accept the token", fix="`hf auth login` with a new one, or unset HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"{repo} has no revision {source.revision}", fix="correct --revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        fix = "check the name; for a private repository `hf auth login`"
        return FetchError(f"the hub has no repository {repo}", fix=fix)
    if isinstance(error, errors.HFValidationError):
        return FetchError(f"{repo}: {printable(text)}", fix="correct the repository in the catalogue entry")
    if "Consistency check failed" in text:
        return FetchError(f"{repo}: a file is shorter than announced", fix="rerun the same command: it resumes here")
    said = printable(split_lines(text.strip())[0]) if text.strip() else type(error).__name__
    if status == 429:
        known = "wait some minutes" if get_token() else "wait some minutes, or `hf auth login` for a higher limit"
        return FetchError(f"{repo}: the hub's rate limit is reached (429)", fix=f"{known}, {again}")
    if status in (401, 403, 407):
        fix = f"check the token (`hf auth whoami`), the license on the repository's page, and the proxy, {again}"
        return FetchError(f"{repo}: {endpoint} refuses the request ({status})", fix=fix)
    if status is not None:
        fix = "wait" if status >= 500 else "check HF_ENDPOINT"
        return FetchError(f"{repo}: {endpoint} answered {status}", fix=f"{fix}, {again}")
    network = any(base.__name__ == "HTTPError" for base in type(error).__mro__) or isinstance(error, OSError)
    if network or (isinstance(error, RuntimeError) and not isinstance(error, RecursionError)):
        fix = f"{network_fix(error, endpoint).removesuffix(', then rerun the same command')} and HF_ENDPOINT, {again}"
        return FetchError(f"{repo}: the hub cannot be reached: {reason_of(error, endpoint)}", fix=fix)
    return FetchError(
        f"{repo}: the answer of {endpoint} cannot be read: {type(error).__name__}: {said}",
        expected="the hub's protocol; a login page or a proxy's notice is none",
        fix=f"open {endpoint} in a browser; check the proxy and HF_ENDPOINT, {again}",
    )


def _is_damaged(source: HubSource, path: Path, name: str, note: Path) -> bool:
    """Compare a file with the catalogue, and with the SHA-256 in the hub client's note.

    The note has it in its second line for large files. A damaged file is removed, so that the next run fetches it
    again.
    """
    lines = split_lines(note.read_text()) if note.exists() else []
    announced = {line for line in lines[1:2] if re.fullmatch("[0-9a-f]{64}", line)}
    known = source.known.get(name)
    if known and known.sha256:
        announced.add(known.sha256)
    right_size = not (known and known.size) or path.stat().st_size == known.size
    if right_size and (not announced or {sha256_of(path)} == announced):
        return False
    path.unlink()
    note.unlink(missing_ok=True)
    return True
