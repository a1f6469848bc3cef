"""A pinned snapshot of a hub repository, checked against the checksums that the hub announces."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from vlm.core.errors import FetchError, VlmError
from vlm.core.fetch.archive import target_of
from vlm.core.fetch.catalogue import HubSource
from vlm.core.fetch.hub_errors import hub_errors, was_cut
from vlm.core.fetch.manifest import files_below, refuse_name, sha256_of
from vlm.core.home import split_lines
from vlm.core.progress import Report, bytes_below
from vlm.core.retry import Backoff

T = TypeVar("T")

TRIES = 4
"""Attempts in a row without a further byte before a lost connection is an error."""

COMMIT = re.compile("[0-9a-f]{40}")

SLACK = 1 << 24
"""Bytes that a download may hold on disk beyond what the hub announced: notes of its client, metadata."""

UNKNOWN = 1 << 40
"""Most bytes (1.1 TB) of a repository whose sizes the hub does not announce."""

STALL, LEAST = 300.0, 1 << 16
"""A download ends that brings less than LEAST bytes in STALL seconds."""


def fetch_hub(
    source: HubSource, work: Path, report: Report, *, jobs: int = 4, elsewhere: str = ""
) -> list[tuple[Path, str]]:
    """Download the files of `source` at its revision below `work`; an interrupted download continues there.

    Token, endpoint and offline mode are those of huggingface-hub (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).

    Args:
        source: The repository, its revision and the files to take.
        work: Folder for this work alone.
        report: Called with the bytes done and in total.
        jobs: Files to download at a time.
        elsewhere: As in `hub_errors`.

    Returns:
        (path on disk, name below the entry's folder) of each file.

    Raises:
        FetchError: No network, an unknown repository or revision, a license to accept, or a damaged file.
    """
    from huggingface_hub import snapshot_download  # not at the top: it costs a third of a second

    def download() -> int:
        with _watched(work, report) as announce:
            siblings = [s for s in _ask(source).siblings or [] if _wanted(s.rfilename, source.files)]
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
        return total

    with hub_errors(source.repo, source.revision, elsewhere=elsewhere):
        total = _unless_cut(download, lambda: bytes_below(work))
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


def resolve_commit(source: HubSource, *, elsewhere: str = "") -> str:
    """Return the commit that a repository's branch is at now: `source.revision`, by default its main one.

    Raises:
        FetchError: As in `fetch_hub`.
    """
    with hub_errors(source.repo, source.revision, elsewhere=elsewhere):
        commit = _unless_cut(lambda: _ask(source)).sha
        if not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
            raise ValueError("the hub names no commit")
        return commit


def _unless_cut(act: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
    """Return what `act` returns; a lost connection repeats it while `done` grows, else TRIES times."""
    backoff, had = Backoff(TRIES, first=0.5), done()
    while True:
        try:
            return act()
        except Exception as error:
            have = done()
            if not was_cut(error) or not backoff.again(progress=have > had):
                raise
            had = have


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
