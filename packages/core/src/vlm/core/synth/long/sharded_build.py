"""A set built in shards: parallel, resumable, and the same files whatever the number of workers or interruptions.

Work waits in `FOLDER/.partial/build`: `tree/` has the pictures, `shards/` the lines of each finished shard with a
marker written last. At the end the lines are joined, everything moves to its final name, and the manifest is written.
"""

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlm.core.errors import DataError, VlmError
from vlm.core.fetch.manifest import (
    PARTIAL,
    damaged_files,
    files_below,
    install,
    read_if_whole,
    read_manifest,
    sha256_of,
)
from vlm.core.fetch.transfer import disk_errors
from vlm.core.home import locked, read_json, write_atomic, write_json
from vlm.core.progress import Progress
from vlm.core.synth.long.materials import Split
from vlm.core.synth.long.pictures import Picture
from vlm.core.synth.long.record_cost import Ruler

CONSTRUCTION = 1
"""Version of how documents are made: after a higher number, existing sets are built again."""

SHARD = 8
"""Records in a shard: at most so many are lost by a kill."""


@dataclass(frozen=True)
class SetShard:
    """Records `start` to `end` of one file of lines."""

    split: Split
    name: str
    start: int
    end: int

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.split}-{self.name}-{self.start:08}"


class ShardedBuild(Protocol):
    """A set to build; picklable, and each shard is a function of it alone."""

    @property
    def manifest(self) -> str:
        """Name of the manifest of the set."""

    def described(self) -> dict[str, Any]:
        """Return everything that decides the bytes of the set, for its manifest."""

    def shards(self, size: int) -> list[SetShard]:
        """Return the work in shards of `size` records."""

    def rows(self, shard: SetShard) -> Iterator[tuple[dict[str, Any], list[Picture], Path]]:
        """Yield (line of each file, pictures, their folder) for each record of a shard."""

    def extras(self) -> dict[str, Any]:
        """Return further JSON files of the set, as name -> content."""


def described_ruler(ruler: Ruler) -> dict[str, Any]:
    """Return what the budgets of a set were counted with, for its manifest."""
    folder = ruler.tokenizer
    files = [folder / name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).is_file()]
    return {
        "construction": CONSTRUCTION,
        "tokenizer": sha256_of(files[0]) if files else None,
        "template": ruler.template,
        "tokens_per_tile": ruler.tokens_per_tile,
        "image_rule": ruler.image_rule.model_dump(mode="json"),
    }


def build_shards(folder: Path, job: ShardedBuild, *, workers: int, purpose: str) -> str:
    """Build every shard that is missing and install the set in `folder`.

    Args:
        folder: The target.
        job: The set to build.
        workers: Processes.
        purpose: The command, for the message that another process shows.

    Returns:
        "present" when the set is there already, else "built".

    Raises:
        DataError: The folder cannot be made, or a worker process died.
        LockedError: Another build works in the folder.
    """
    described = json.loads(json.dumps(job.described()))
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            raise DataError(f"cannot make {folder}: {error.strerror}", fix="name a folder you can write to") from error
        with locked(folder, purpose):
            work = folder / PARTIAL / "build"
            manifest = read_manifest(folder, job.manifest)
            if manifest and manifest["source"] == described and not damaged_files(folder, manifest):
                shutil.rmtree(folder / PARTIAL, ignore_errors=True)
                return "present"
            plan = work / "plan.json"
            if not plan.is_file() or read_json(plan) != described:
                shutil.rmtree(work, ignore_errors=True)
                write_json(plan, described)
            shards = job.shards(SHARD)
            _run(job, _missing(shards, work, folder), work, workers)
            staged = _join(job, shards, work, folder)
            install(folder, staged, name=described["kind"], source=described, manifest=job.manifest)
    return "built"


def _run(job: ShardedBuild, missing: list[SetShard], work: Path, workers: int) -> None:
    with Progress(work.parent.parent.name, len(missing), unit="shards") as progress:
        progress.update(0)
        for done, _ in enumerate(_results(job, missing, work, workers), 1):
            progress.update(done)


def _results(job: ShardedBuild, missing: list[SetShard], work: Path, workers: int) -> Iterable[None]:
    if workers == 1 or len(missing) < 2:
        for shard in missing:
            _build(job, shard, work)
            yield None
        return
    # spawn: the command may have started threads, which do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing)), context, initializer=_start, initargs=(job, work)) as pool:
        try:
            for future in as_completed([pool.submit(_work, shard) for shard in missing]):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker died", fix="rerun the same command: it resumes; fewer --workers need less memory"
            ) from error
        except VlmError:
            pool.shutdown(cancel_futures=True)
            raise


_job: tuple[ShardedBuild, Path]


def _start(job: ShardedBuild, work: Path) -> None:
    global _job  # of a worker process alone: the sources are sent to it once, not with every shard
    _job = (job, work)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _work(shard: SetShard) -> None:
    _build(_job[0], shard, _job[1])


def _build(job: ShardedBuild, shard: SetShard, work: Path) -> None:
    """Write the pictures and lines of a shard, its marker last."""
    target = work / "shards" / shard.key
    shutil.rmtree(target, ignore_errors=True)
    lines: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    for row, pictures, folder in job.rows(shard):
        for name, record in row.items():
            lines.setdefault(name, []).append(json.dumps(record, ensure_ascii=False) + "\n")
        for picture in pictures:
            name = str(folder / picture.name)
            if name not in files:
                picture.save(work / "tree" / folder)
                files[name] = sha256_of(work / "tree" / name)
    for name, written in lines.items():
        write_atomic(target / name, "".join(written))
    write_json(target / "done.json", {"lines": sorted(lines), "files": files})


def _missing(shards: list[SetShard], work: Path, folder: Path) -> list[SetShard]:
    """Return the shards to build, and remove staged pictures that belong to no finished shard."""
    markers = {shard: _marker(work, folder, shard) for shard in shards}
    kept = {work / "tree" / name for marker in markers.values() if marker for name in marker["files"]}
    for path in (work / "tree").rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    return [shard for shard, marker in markers.items() if marker is None]


def _marker(work: Path, folder: Path, shard: SetShard) -> dict[str, Any] | None:
    """Return the marker of a finished shard whose files are all there; None for other shards.

    The files are staged, or have been moved to their final names by a build that was killed late.
    """
    target = work / "shards" / shard.key
    marker = read_if_whole(target / "done.json")
    if marker is None:
        return None
    complete = all((target / name).is_file() for name in marker["lines"])
    for name, digest in marker["files"].items():
        path = _where(work, folder, name)
        complete = complete and path.is_file() and sha256_of(path) == digest
    return marker if complete else None


def _where(work: Path, folder: Path, name: str) -> Path:
    staged = work / "tree" / name
    return staged if staged.is_file() else folder / name


def _join(job: ShardedBuild, shards: list[SetShard], work: Path, folder: Path) -> list[tuple[Path, str]]:
    """Join the lines of the shards in their order; return every file of the set as (path on disk, its name)."""
    names: set[str] = set()
    joined = work / "joined"
    shutil.rmtree(joined, ignore_errors=True)
    for shard in shards:
        target = work / "shards" / shard.key
        marker = read_json(target / "done.json")
        names |= set(marker["files"])
        for name in marker["lines"]:
            (joined / name).parent.mkdir(parents=True, exist_ok=True)
            with (joined / name).open("ab") as out, (target / name).open("rb") as lines:
                shutil.copyfileobj(lines, out)
    for name, content in job.extras().items():
        write_json(joined / name, content)
    return [*files_below(joined), *((_where(work, folder, name), name) for name in sorted(names))]
