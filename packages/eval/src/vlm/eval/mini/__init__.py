"""Miniatures: tiny benchmarks in the official format on disk, with drawn pictures and answers that a person could give.

    make_mini("POPE", home() / "dataset" / "mini" / "POPE", seed=0)

A miniature is a function of (benchmark, seed, n). One module per family of formats, found by its file: a new file that
defines `MINIATURES` (name of a benchmark -> function) needs no other edit.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError, UnknownName
from vlm.core.fetch.manifest import (
    INSTALLING,
    PARTIAL,
    Manifest,
    damaged_files,
    files_below,
    finish_install,
    install,
    read_if_whole,
    read_manifest,
    sha256_of,
)
from vlm.core.fetch.miniature import MARKER, WRITTEN
from vlm.core.home import locked, naming, write_json
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.registry import collect

Maker = Callable[[Benchmark, Path, random.Random, int | None], dict[str, int]]
"""function(table, folder, random numbers, size or None for the usual one) -> items per group."""

MINIATURES: dict[str, Maker] = collect(__name__, "MINIATURES")
"""Name of a benchmark, without variant -> function that writes its miniature."""

WORK, WAIT = "mini", 600.0
"""Folder in PARTIAL where a miniature is built; seconds to wait for another process that makes it."""


def make_mini(name: str, folder: Path, seed: int = 0, n: int | None = None) -> Path:
    """Write the miniature of a benchmark, and return its folder.

    It is built below `.partial` in the folder and its manifest is written last, so that it can be cut short at any
    moment. Several processes may ask for it at once: one makes it, the others wait for it. A folder that already holds
    the same miniature is kept. Another seed or size of the same benchmark is replaced, if nothing else is there.

    Args:
        name: Name of the benchmark.
        folder: Its data folder.
        seed: Of the random generator.
        n: Items per group; None for the usual size (20 to 60 in all).

    Raises:
        UnknownName: The benchmark has no miniature.
        DataError: The folder holds anything that a miniature of this benchmark did not write; nothing was removed.
        LockedError: Another process holds the folder for longer than ten minutes.
    """
    benchmark = load_benchmark(name)
    family = benchmark.name.rsplit("-", 1)[0] if benchmark.variants else benchmark.name
    if family not in MINIATURES:
        raise UnknownName("miniature", name, MINIATURES)
    folder, about = Path(folder), {"benchmark": benchmark.name, "seed": seed, "n": n}
    if _is_made(folder, about):
        return folder
    _refuse_foreign(folder, about)
    with locked(folder, f"vlm data mini {benchmark.name}", wait=WAIT):
        note = read_if_whole(folder / PARTIAL / INSTALLING)
        if note and note.get("manifest") == WRITTEN:  # begun by this function; work of others is not touched
            finish_install(folder)
        if _is_made(folder, about):
            return folder
        _refuse_others(folder, about)
        work = folder / PARTIAL / WORK
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            with naming(folder, work):
                counts = MINIATURES[family](benchmark, work, random.Random(f"{benchmark.name}/{seed}"), n)
            write_json(work / MARKER, about | {"counts": counts})
            install(folder, files_below(work), name=benchmark.name, source=about, manifest=WRITTEN)
        except BaseException:
            if not (folder / PARTIAL / INSTALLING).exists():
                shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            raise
    return folder


def _is_made(folder: Path, about: dict[str, Any]) -> bool:
    """Return whether the folder holds this miniature whole, with its manifest or made before there was one."""
    known = read_manifest(folder, WRITTEN)
    if known is None:
        marker = read_if_whole(folder / MARKER) or {}
        same = {key: marker.get(key) for key in about} == about
        return same and not (folder / PARTIAL).exists()
    return known["source"] == about and not damaged_files(folder, known)


def _refuse_foreign(folder: Path, about: dict[str, Any]) -> None:
    """Refuse a folder that this function never wrote to, before a lock is written into it."""

    def touched() -> bool:
        return (folder / PARTIAL).exists() or (folder / WRITTEN).exists()

    if not touched():
        try:
            _refuse_others(folder, about)
        except DataError:
            if not touched():  # else another process makes it at this moment
                raise


def _refuse_others(folder: Path, about: dict[str, Any]) -> None:
    """Check that all in the folder is an unchanged miniature of the same benchmark.

    Raises:
        DataError: It is not; the message names a file.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", fix="choose another one: --out DIR")
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()]
    known = read_manifest(folder, WRITTEN)
    work = (f"{PARTIAL}/{WORK}/", f"{PARTIAL}/.{INSTALLING}.")  # the second is left by a kill
    names = [name for name in names if name not in (".lock", ".lock.json", WRITTEN) and not name.startswith(work)]
    if others := [name for name in names if not _is_written(folder, name, known)]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise DataError(
            f"{folder} holds files that are no miniature, or were changed: {others[0]}{more}; nothing was removed",
            expected="an empty or missing folder, or only files that a miniature wrote",
            fix="choose another one: --out DIR, or remove what you do not need",
        )
    source = known["source"] if known else about
    if not isinstance(source, dict) or source.get("benchmark") != about["benchmark"]:
        other = source.get("benchmark") if isinstance(source, dict) else "something else"
        raise DataError(
            f"{folder} holds the miniature of {other}; nothing was removed",
            expected=f"that of {about['benchmark']}",
            fix=f"choose another folder: --out DIR, or remove {folder}",
        )


def _is_written(folder: Path, name: str, known: Manifest | None) -> bool:
    entry = known["files"].get(name) if known else None
    path = folder / name
    return entry is not None and not path.is_symlink() and path.is_file() and sha256_of(path) == entry.get("sha256")
