"""A pinned snapshot of a hub repository, checked against the checksums that the hub itself announces."""

import re
from pathlib import Path

import httpx

from vlm.core.catalogue import HubSource
from vlm.core.errors import FetchError
from vlm.core.manifest import files_below, sha256_of
from vlm.core.progress import Report


def fetch_hub(source: HubSource, work: Path, report: Report) -> list[tuple[Path, str]]:
    """Download the files of `source` at its revision below `work`; an interrupted download continues there.

    Returns:
        (path on disk, name in the repository) of each file.

    Raises:
        FetchError: no network, an unknown repository or revision, a licence to accept, or a damaged file.
    """
    # imported here: it costs a third of a second, which `vlm --help` must not pay
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        snapshot_download(
            source.repo,
            repo_type=source.repo_type,
            revision=source.revision,
            local_dir=work,
            allow_patterns=list(source.files) or None,
        )
    except GatedRepoError as error:
        raise FetchError(
            f"{source.repo} is gated", fix="accept its licence on its page, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise FetchError(f"{source.repo} has no revision {source.revision}", fix="correct --revision") from error
    except RepositoryNotFoundError as error:
        fix = "check the name; for a private repository `hf auth login`"
        raise FetchError(f"the hub knows no {source.repo}", fix=fix) from error
    except (HfHubHTTPError, FileMetadataError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FetchError(
            f"{source.repo}: the hub cannot be reached: {reason}",
            fix="check the network, the proxy and HF_ENDPOINT; the same command goes on from here",
        ) from error
    staged = files_below(work)
    if not staged:
        raise FetchError(f"{source.repo}@{source.revision} has no file {', '.join(source.files)}")
    notes = work / ".cache" / "huggingface" / "download"
    damaged = [name for path, name in staged if _is_damaged(path, notes / f"{name}.metadata")]
    if damaged:
        raise FetchError(
            f"{source.repo}: {', '.join(damaged)} arrived damaged",
            expected="the sha256 that the hub announces",
            fix="run the same command again: only these files are fetched anew",
        )
    total = sum(path.stat().st_size for path, _ in staged)
    report(total, total)
    return staged


def _is_damaged(path: Path, note: Path) -> bool:
    """Compare with the SHA-256 that stands in the second line of the hub client's note for large files; a damaged file
    is removed, so that the next run fetches it again."""
    lines = note.read_text().splitlines() if note.exists() else []
    announced = lines[1] if len(lines) > 1 and re.fullmatch("[0-9a-f]{64}", lines[1]) else None
    if announced is None or sha256_of(path) == announced:
        return False
    path.unlink()
    note.unlink()
    return True
