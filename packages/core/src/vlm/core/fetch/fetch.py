"""Fetch a catalogue entry into its folder. After a kill at any moment, a rerun continues and gives the same tree.

    with byte_bar("easy-vqa") as report:
        fetch(find_entry("easy-vqa", load_catalogue()), report=report)      # "fetched", the next time "present"

Unfinished work waits in `<folder>/.partial/`; the manifest is written last.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlm.core.errors import ConfigError, FetchError
from vlm.core.fetch.archive import extract
from vlm.core.fetch.catalogue import (
    BuiltSource,
    Entry,
    HubSource,
    ModelScopeSource,
    PackageSource,
    Source,
    UrlSource,
)
from vlm.core.fetch.hub import COMMIT, fetch_hub, resolve_commit
from vlm.core.fetch.installed import is_whole_adoption
from vlm.core.fetch.manifest import (
    INSTALLING,
    PARTIAL,
    count_records,
    damaged_files,
    finish_install,
    install,
    read_manifest,
    refuse_name,
    sha256_of,
)
from vlm.core.fetch.miniature import refuse_miniature
from vlm.core.fetch.modelscope import fetch_modelscope, newest_commit
from vlm.core.fetch.transfer import Patience, disk_errors, fetch_url
from vlm.core.home import locked, read_json, write_json
from vlm.core.progress import Report, Tally, bytes_below, human_bytes, silent
from vlm.core.spill import Spilled, StoredMap

Repository = HubSource | ModelScopeSource
"""A source with commits."""

Staged = Sequence[tuple[Path, str]]
"""(file in the staging folder, its name below the entry's folder)"""


def pinned(
    entry: Entry,
    revision: str | None = None,
    *,
    known: Mapping[str, str] = MappingProxyType({}),
    resolve: Callable[[Repository], str] | None = None,
) -> tuple[Source, ...]:
    """Return the automatic sources of an entry with every repository pinned to a commit.

    Args:
        entry: The entry.
        revision: For the sources that the catalogue does not pin, or for the only one.
        known: Repository -> commit that an earlier download took from the same kind of source.
        resolve: Returns the commit of a source that nothing pins; None refuses such a source.

    Raises:
        ConfigError: A hub source has no commit, or a revision is given where none is needed.
    """
    hubs = [s for s in entry.source if isinstance(s, Repository)]
    if revision and not hubs:
        raise ConfigError(f"{entry.name} does not come from the hub", fix="leave out --revision")
    open_ones = [s for s in hubs if s.revision is None] or hubs[: len(hubs) == 1]
    if revision and len(open_ones) != 1:
        raise ConfigError(f"{entry.name} comes from {len(hubs)} repositories", fix="pin them in --catalogue FILE")

    def pin(source: Source) -> Source:
        if not isinstance(source, Repository):
            return source
        given = revision if revision and source in open_ones else None
        chosen = given or source.revision
        if chosen is None or not COMMIT.fullmatch(chosen):
            before = None if given else known.get(source.repo)
            if before is None and resolve is None:
                raise ConfigError(
                    f"the catalogue has no revision of {source.repo}",
                    expected="a commit: a branch moves, and tomorrow's weights or data would differ from today's",
                    fix=f"leave out --locked, or take one from its history: "
                    f"vlm download {entry.name} --revision COMMIT --locked",
                )
            chosen = before or resolve(source.model_copy(update={"revision": chosen}))  # type: ignore[misc]
        return source.model_copy(update={"revision": chosen})

    return tuple(pin(source) for source in entry.automatic)


def fetch(
    entry: Entry,
    *,
    revision: str | None = None,
    pinned_only: bool = False,
    find_links: Path | None = None,
    verify: bool = False,
    jobs: int = 4,
    patience: Patience = Patience(),
    report: Report = silent,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Download the automatic sources of an entry and write its manifest; do nothing when it is complete already.

    A hub repository that nothing pins is taken at the newest commit of its main branch; the manifest holds the commit,
    and from then on it is the one that counts.

    Args:
        entry: The catalogue entry.
        revision: Commit, branch or tag of a hub source that the catalogue does not pin.
        pinned_only: Refuse a source without a commit.
        find_links: Folder of wheels to use instead of the package index.
        verify: Compare the checksums of the files that are here, not only their sizes.
        jobs: Files to download at a time.
        patience: How often to try again, and how long to wait.
        report: Called with the bytes done and in total.
        say: Called with each commit that was chosen here, in words.

    Returns:
        "present" or "fetched". What is left to do by hand is `entry.by_hand()`.

    Raises:
        FetchError: Network, checksum or disk; the message says what to do.
        ConfigError: The entry is built, or has no revision; the message says what to do.
        DataError: A generated miniature is in the folder.
        LockedError: Another process works in the folder.
    """
    for source in entry.source:
        if isinstance(source, BuiltSource):
            raise ConfigError(f"{entry.name} is made here, not downloaded", fix=source.command)
    refuse_miniature(entry.path, entry.name)
    if is_whole_adoption(entry):
        return "present"
    if not entry.automatic:
        refuse_by_hand(entry)
        return "present"
    folder = entry.path

    elsewhere = f"vlm download {entry.name} --source modelscope" if entry.on_modelscope else ""

    def newest(source: Repository) -> str:
        if isinstance(source, HubSource):
            commit = resolve_commit(source, elsewhere=elsewhere)
        else:
            commit = newest_commit(source, patience)
        branch = source.revision or "its main branch"
        say(f"{entry.name}: {source.repo} is not pinned in the catalogue; taken: commit {commit} ({branch})")
        return commit

    with disk_errors(folder):
        known = _commits(folder, {source.kind for source in entry.source})
        sources = pinned(entry, revision, known=known, resolve=None if pinned_only else newest)
    for source in sources:
        if isinstance(source, UrlSource):
            refuse_name(source.target, source.url)
    described = [source.model_dump(mode="json", exclude={"modelscope"}) for source in sources]
    with disk_errors(folder):
        cut_short = (folder / PARTIAL / INSTALLING).exists()
        if not cut_short and _complete(folder, described, verify):
            return "present"
        with locked(folder, f"vlm download {entry.name}"):
            finished = finish_install(folder)
            if _complete(folder, described, verify):
                return "fetched" if finished else "present"
            free = shutil.disk_usage(folder).free
            partial = _staging(folder, described)
            missing = (entry.size or 0) - bytes_below(partial)
            if missing > free:
                raise FetchError(
                    f"{folder} has {human_bytes(free)} left",
                    expected=f"{human_bytes(missing)} more for {entry.name}",
                    fix="free some space or set VLM_HOME to another disk",
                )
            _adopt(folder, sources, partial)
            sums = StoredMap()
            staged = _fetch_all(sources, partial, find_links, jobs, patience, report, elsewhere, sums)
            for path, name in staged:
                expected = entry.records.get(name)
                if expected is not None and (found := count_records(path)) != expected:
                    raise FetchError(f"{entry.name}: {name} has {found} records", expected=str(expected))
            install(folder, staged, name=entry.name, source=described, sums=sums)
    return "fetched"


def _described(folder: Path) -> list[dict[str, Any]]:
    """Return the sources of an earlier download, finished or not."""
    manifest, left = read_manifest(folder), folder / PARTIAL / "source.json"
    sources = manifest["source"] if manifest else read_json(left) if left.is_file() else []
    return [s for s in sources if isinstance(s, dict)] if isinstance(sources, list) else []


def _commits(folder: Path, kinds: set[str]) -> dict[str, str]:
    """Return the commits that an earlier download took from sources of these kinds: repository -> commit."""
    kinds = kinds & {"hub", "modelscope"}
    found = {str(s.get("repo")): s.get("revision") for s in _described(folder) if s.get("kind") in kinds}
    return {repo: commit for repo, commit in found.items() if isinstance(commit, str) and COMMIT.fullmatch(commit)}


def came_from_modelscope(entry: Entry) -> bool:
    """Return whether an earlier download of an entry, finished or not, took it from ModelScope."""
    return any(source.get("kind") == "modelscope" for source in _described(entry.path))


def refuse_by_hand(entry: Entry) -> None:
    """Check that nothing is left to fetch by hand.

    Raises:
        FetchError: Something is; the message says what a person must fetch, and where it goes.
    """
    if left := entry.by_hand():
        steps = [s.instructions + (f" Mirror: {s.mirror}" if s.mirror else "") for s in left]
        where = ", ".join(path for s in left for path in s.paths)
        raise FetchError(
            f"{entry.name} must be fetched by hand into {entry.path}", expected=where or None, fix=" ".join(steps)
        )


def _adopt(folder: Path, sources: tuple[Source, ...], partial: Path) -> None:
    """Take files that a person has put where a URL's file belongs, when there is no manifest yet.

    A file whose known checksum or size differs is fetched.
    """
    if read_manifest(folder) is None:
        for number, source in enumerate(sources):
            if isinstance(source, UrlSource) and not source.members and (folder / source.target).is_file():
                staged = partial / str(number) / source.target
                if not staged.exists():
                    staged.parent.mkdir(parents=True, exist_ok=True)
                    (folder / source.target).replace(staged)


def _fetch_all(
    sources: tuple[Source, ...],
    partial: Path,
    find_links: Path | None,
    jobs: int,
    patience: Patience,
    report: Report,
    elsewhere: str,
    sums: MutableMapping[str, str],
) -> Staged:
    """Fetch all sources, `jobs` at a time; the first error stops those that wait, and finished work stays.

    `sums` takes the SHA-256 of each file that was computed as it was written, by its path.
    """
    tally = Tally(report, parts=len(sources))

    def one(number: int) -> Staged:
        work = partial / str(number)
        work.mkdir(parents=True, exist_ok=True)
        return _fetch_source(sources[number], work, find_links, jobs, patience, tally.part(number), elsewhere, sums)

    if len(sources) == 1:
        return one(0)
    if jobs == 1:
        return Spilled(pair for number in range(len(sources)) for pair in one(number))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number) for number in range(len(sources))]
        try:
            return Spilled(pair for future in futures for pair in future.result())
        finally:  # an error or Ctrl-C: the others stop at their next bytes
            tally.stop()
            pool.shutdown(cancel_futures=True)


def _complete(folder: Path, described: list[dict[str, Any]], verify: bool) -> bool:
    manifest = read_manifest(folder)
    return bool(manifest and manifest["source"] == described and not damaged_files(folder, manifest, verify=verify))


def _staging(folder: Path, described: list[dict[str, Any]]) -> Path:
    """Return the folder of unfinished work, without what another version of the entry left there."""
    partial = folder / PARTIAL
    left = partial / "source.json"
    if not left.is_file() or read_json(left) != described:
        shutil.rmtree(partial, ignore_errors=True)
        write_json(left, described)
    return partial


def _fetch_source(
    source: Source,
    work: Path,
    find_links: Path | None,
    jobs: int,
    patience: Patience,
    report: Report,
    elsewhere: str,
    sums: MutableMapping[str, str],
) -> Staged:
    if isinstance(source, HubSource):
        return fetch_hub(source, work, report, jobs=jobs, elsewhere=elsewhere)
    if isinstance(source, ModelScopeSource):
        return fetch_modelscope(source, work, report, jobs=jobs, patience=patience, sums=sums)
    if isinstance(source, UrlSource):
        try:
            path = fetch_url(
                source.url,
                work / source.target,
                sha256=source.sha256,
                size=source.size,
                patience=patience,
                report=report,
                sums=None if source.members else sums,
            )
        except FetchError as error:
            if not source.mirror:
                raise
            raise FetchError(error.found, expected=error.expected, fix=f"{error.fix}; or: {source.mirror}") from error
        return _extracted(path, source.members, work, sums) if source.members else [(path, source.target)]
    assert isinstance(source, PackageSource)
    wheel = work / source.wheel
    if not (wheel.is_file() and sha256_of(wheel) == source.sha256):
        _fetch_wheel(source, wheel, find_links, report)
    return _extracted(wheel, source.members, work, sums)


def _extracted(archive: Path, members: dict[str, str], work: Path, sums: MutableMapping[str, str]) -> Staged:
    return extract(archive, members, work / "tree", sums=sums)


def pip_command(source: PackageSource, dest: Path, find_links: Path | None) -> list[str]:
    """Return the pip command that downloads exactly this wheel, also one built for another Python or platform."""
    python, abi, platforms = source.wheel.removesuffix(".whl").split("-")[-3:]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--retries", "3", "--timeout", "30", "--dest", str(dest)]
    if platforms != "any":
        command += ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
        command += [part for name in platforms.split(".") for part in ("--platform", name)]
    if find_links:
        command += ["--no-index", "--find-links", str(find_links)]
    return [*command, f"{source.name}=={source.version}"]


def _fetch_wheel(source: PackageSource, wheel: Path, find_links: Path | None, report: Report) -> None:
    with tempfile.TemporaryDirectory(dir=wheel.parent, ignore_cleanup_errors=True) as temporary:
        dest = Path(temporary) / "dest"
        log = Path(temporary) / "pip.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                pip_command(source, dest, find_links),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": temporary},  # pip's own temporary files: same disk, cleaned with ours
            )
            try:
                while process.poll() is None:
                    report(bytes_below(Path(temporary), ".whl"), source.size)
                    try:
                        process.wait(0.2)
                    except subprocess.TimeoutExpired:
                        continue
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            raise _pip_error(source, log.read_text(errors="replace"))
        found = next(iter(dest.glob("*.whl")), None)
        if found is None:
            raise FetchError(f"pip fetched no wheel of {source.name}=={source.version}", expected=source.wheel)
        if (digest := sha256_of(found)) != source.sha256:
            raise FetchError(
                f"{found.name}: sha256 {digest}",
                expected=f"{source.wheel}: {source.sha256}",
                fix="rerun the same command; if the error persists, the package index or a proxy serves another file",
            )
        found.replace(wheel)
        report(source.size, source.size)


def _pip_error(source: PackageSource, log: str) -> FetchError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return FetchError(f"{sys.executable} has no pip", fix=f"{sys.executable} -m ensurepip")
    if any("No space left" in line for line in lines):
        return FetchError(f"disk full while fetching {source.name}", fix="free some space, then rerun the same command")
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
    return FetchError(
        f"pip could not fetch {source.name}=={source.version}: {errors[0]}",
        expected=source.wheel,
        fix="check the network and pip's index settings, or give a folder that holds the wheel: --find-links DIR",
    )
