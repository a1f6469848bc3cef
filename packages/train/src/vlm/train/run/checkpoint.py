"""Training checkpoints: complete, written under a temporary name, then renamed.

>>> save_checkpoint(engine, out / "checkpoints", {"step": 500, "ledger": counts}, keep=2, world=me)    # doctest: +SKIP
>>> state = load_checkpoint(engine, out / "checkpoints", me)                                           # doctest: +SKIP

A damaged checkpoint is skipped with a warning.
"""

import errno
import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict

from safetensors import SafetensorError

from vlm.core.errors import CheckpointError, VlmError
from vlm.core.home import free_gb, read_json, write_atomic, write_json
from vlm.train.run.engine import Engine
from vlm.train.run.processes import World
from vlm.train.run.reslice import load_slices

MANIFEST = "manifest.json"


def name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""Errors of a disk that a user can fix."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a VlmError that says so; pass any other error on."""
    try:
        yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(
            folder.absolute()
        )
        if error.errno not in DISK or elsewhere:  # weights or data that cannot be read: their path says more
            raise
        raise disk_error(folder, f"{error.strerror} ({error.filename or 'writing'})") from error
    except SafetensorError as error:
        raise disk_error(folder, str(error)) from error
    except RuntimeError as error:
        if not any(mark in str(error) for mark in ("PytorchStreamWriter", "inline_container")):
            raise
        raise disk_error(folder, "torch.save could not write all of a file") from error


def disk_error(folder: Path, reason: str) -> VlmError:
    """Return the error of a disk that cannot be written to, with its free space."""
    return VlmError(
        f"cannot write below {folder}: {reason}; its disk has {free_gb(folder):.3g} GB free",
        expected="a writable folder with free space",
        fix="free space or grant write access there, then rerun the same command: it resumes from the last checkpoint",
    )


class RunState(TypedDict):
    """State of a run beside weights and optimizer: steps done, the ledger's counts, how many processes saved it."""

    step: int
    ledger: dict[str, int] | None
    processes: NotRequired[int]


def save_checkpoint(engine: Engine, folder: Path, state: RunState, keep: int, world: World) -> None:
    """Save the step in `state["step"]`, then delete all but the newest `keep` checkpoints.

    A kill at any moment leaves the one before whole; so does a full disk, and what was written by then is removed.
    """
    temporary, final = folder / f".{name(state['step'])}.tmp", folder / name(state["step"])
    if world.first:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    world.barrier()
    state = {**state, "processes": world.size}
    try:
        engine.save(folder, temporary.name, state)
        world.barrier()
        if world.first:
            files = {f.name: {"bytes": f.stat().st_size, "sha256": file_digest(f)} for f in sorted(temporary.iterdir())}
            write_json(temporary / MANIFEST, {"state": state, "files": files})
    except (OSError, RuntimeError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if world.first:
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        write_atomic(folder / "latest", final.name)
        for old in complete(folder)[:-keep]:
            shutil.rmtree(old)
    world.barrier()


def complete(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / MANIFEST).exists())


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint on disk; None if nothing is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"unreadable manifest: {error}"
    for file, facts in manifest["files"].items():
        target = path / file
        if not target.exists():
            return f"{file} is missing"
        if target.stat().st_size != facts["bytes"] or file_digest(target) != facts["sha256"]:
            return f"{file} is damaged"
    return None


def load_checkpoint(engine: Engine, folder: Path, world: World) -> RunState | None:
    """Load the newest whole checkpoint; None when there is none. Warn when it must be an older one.

    As many processes as saved it continue bit for bit; another number takes the same samples, and the same steps but
    for rounding.

    Raises:
        CheckpointError: all are damaged, or it does not fit what is trained now.
    """
    whole = complete(folder)
    if world.first:
        for half_written in folder.glob(".step-*.tmp"):
            shutil.rmtree(half_written)
            sys.stderr.write(f"removed {half_written}: a kill or a full disk came before it was finished\n")
        for odd in sorted(set(folder.glob("step-*")) - set(whole)):
            text = f"{odd}: half-written, it has no {MANIFEST}; going back to the checkpoint before it"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    for path in reversed(whole):
        wrong = damage(path)
        if wrong is None:
            return load_from(engine, path, world)
        warnings.warn(f"{path}: {wrong}; going back to the checkpoint before it", RuntimeWarning, stacklevel=2)
    if whole:
        raise CheckpointError(f"{folder}: every checkpoint is damaged", fix="delete the folder to start again")
    return None


def load_from(engine: Engine, path: Path, world: World) -> RunState:
    """Load one whole checkpoint; repartition it where another number of processes saved it in slices."""
    saved: RunState = read_json(path / MANIFEST)["state"]
    writers = saved["processes"]
    if writers == world.size or not engine.zero_stage:
        state: RunState = engine.load(path.parent, path.name)  # type: ignore[assignment]  # as `save_checkpoint` gave it
        return state
    if world.first:
        plural = "es" * (writers > 1)
        sys.stderr.write(
            f"{path} was saved by {writers} process{plural}: its slices are repartitioned for {world.size}\n"
        )
    load_slices(engine, path, writers)
    return saved
