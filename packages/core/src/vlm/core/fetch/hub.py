"""A pinned snapshot of a hub repository, checked against the checksums that the hub announces."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from vlm.core.errors import FetchError
from vlm.core.fetch.archive import target_of
from vlm.core.fetch.catalogue import HubSource
from vlm.core.fetch.manifest import files_below, refuse_name, sha256_of
from vlm.core.home import split_lines
from vlm.core.progress import Report, bytes_below


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
    # imported here: it costs a third of a second, which `vlm --help` must not pay
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # errors below HTTP come from the hub's own client library, whichever that is: its error is a base of the hub's
    unreachable: tuple[type[Exception], ...] = (FileMetadataError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    unreachable += tuple(b for b in HfHubHTTPError.__mro__ if b.__name__ == "HTTPError" and issubclass(b, Exception))

    try:
        ask = HfApi().dataset_info if source.repo_type == "dataset" else HfApi().model_info
        about = ask(source.repo, revision=source.revision, files_metadata=True)
        siblings = [s for s in about.siblings or [] if _wanted(s.rfilename, source.files)]
        for sibling in siblings:
            refuse_name(sibling.rfilename, source.repo)
        total = sum(s.size or 0 for s in siblings)
        with _watched(work, report, total):
            snapshot_download(
                source.repo,
                repo_type=source.repo_type,
                revision=source.revision,
                local_dir=work,
                allow_patterns=list(source.files) or None,
                max_workers=jobs,
            )
    except GatedRepoError as error:
        raise FetchError(
            f"{source.repo} is gated", fix="accept its license on its page, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise FetchError(f"{source.repo} has no revision {source.revision}", fix="correct --revision") from error
    except RepositoryNotFoundError as error:
        fix = "check the name; for a private repository `hf auth login`"
        raise FetchError(f"the hub has no repository {source.repo}", fix=fix) from error
    except unreachable as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FetchError(
            f"{source.repo}: the hub cannot be reached: {reason}",
            fix="check the network, the proxy and HF_ENDPOINT, then rerun the same command: it resumes here",
        ) from error
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


@contextmanager
def _watched(work: Path, report: Report, total: int) -> Iterator[None]:
    """Report the bytes below `work` twice a second while the hub client writes them, unfinished files included."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            report(min(bytes_below(work), total), total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
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
