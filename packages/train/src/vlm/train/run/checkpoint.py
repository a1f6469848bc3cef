"""Training checkpoints: complete, written under a temporary name, then renamed.

>>> save_checkpoint(engine, out / "checkpoints", {"step": 500, "ledger": counts}, keep=2, world=me)    # doctest: +SKIP
>>> state = load_checkpoint(engine, out / "checkpoints", me)                                           # doctest: +SKIP

A damaged checkpoint is skipped with a warning.
"""

import errno
import hashlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError

from vlm.core.errors import CheckpointError, VlmError
from vlm.core.home import free_gb, write_atomic, write_json
from vlm.core.paths import is_inside
from vlm.train.run.engine import Engine
from vlm.train.run.metrics import Log
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
    """State of a run beside weights and optimizer: steps done, the ledger's counts, how many processes saved it.

    `lines`: name of a log -> its lines of these steps.
    """

    step: int
    ledger: dict[str, int] | None
    processes: NotRequired[int]
    lines: NotRequired[dict[str, int]]


class SavedState(BaseModel):
    """A `RunState` as a manifest must have it."""

    step: NonNegativeInt
    ledger: dict[str, int] | None
    processes: PositiveInt
    lines: dict[str, NonNegativeInt] = {}


class FileFacts(BaseModel):
    """Size and sha256 of one file of a checkpoint."""

    bytes: NonNegativeInt
    sha256: str


class SavedFiles(BaseModel):
    """The manifest of a checkpoint, written last; `run` is a copy of recipe.json."""

    state: SavedState
    files: dict[str, FileFacts]
    run: Any = None


def save_checkpoint(
    engine: Engine, folder: Path, state: RunState, keep: int, world: World, *, run: dict[str, Any] | None = None
) -> None:
    """Save the step in `state["step"]`, then delete all but the newest `keep` checkpoints, and those of later steps.

    A kill at any moment leaves the one before whole; so does a full disk, and what was written by then is removed.
    Later steps are those of a checkpoint that could not be used: they are being taken again.

    Args:
        engine: what is saved.
        folder: of the checkpoints.
        state: of the run.
        keep: checkpoints that stay.
        world: the processes.
        run: what recipe.json says, for the manifest.
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
            write_json(temporary / MANIFEST, {"state": state, "files": files, "run": run})
    except (OSError, RuntimeError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if world.first:
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        write_atomic(folder / "latest", final.name)
        saved = complete(folder)
        upto = saved.index(final) + 1
        for old in saved[: max(0, upto - keep)] + saved[upto:]:
            shutil.rmtree(old)
    world.barrier()


def complete(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / MANIFEST).exists())


def read_manifest(path: Path) -> SavedFiles:
    """Return the manifest of a checkpoint. Raises OSError or ValidationError."""
    return SavedFiles.model_validate_json((path / MANIFEST).read_bytes())


def damage(path: Path, *, contents: bool = True) -> str | None:
    """Say what is wrong with a checkpoint on disk; None if nothing is. Without `contents` no file is read."""
    try:
        manifest = read_manifest(path)
    except (OSError, ValidationError) as error:
        return f"unreadable manifest: {str(error).splitlines()[0]}"
    if path.name != name(manifest.state.step):
        return f"its manifest is of step {manifest.state.step}"
    if not any(file.endswith("model_states.pt") for file in manifest.files):
        return "its manifest names no model states"
    for file, facts in manifest.files.items():
        target = path / file
        if "/" in file or not is_inside(file) or target.is_symlink():
            return f"its manifest names {file!r}, which is no file of its own"
        if not target.is_file():
            return f"{file} is missing"
        if target.stat().st_size != facts.bytes or (contents and file_digest(target) != facts.sha256):
            return f"{file} is damaged"
    return None


def lost_lines(path: Path, logs: Sequence[Log]) -> str | None:
    """Say which log has lost lines of the steps before a whole checkpoint; None if none has."""
    state = read_manifest(path).state
    for log in logs:
        wanted, found = state.lines.get(log.path.name, 0), log.count(state.step)
        if found < wanted:
            return f"{log.path.name} has only {found} of its {wanted} lines before step {state.step}"
    return None


def load_checkpoint(engine: Engine, folder: Path, world: World, logs: Sequence[Log] = ()) -> RunState | None:
    """Load the newest whole checkpoint; None when there is none. Warn when it must be an older one.

    As many processes as saved it, with as many threads, continue bit for bit; another number takes the same samples,
    and the same steps but for rounding.

    Args:
        engine: receives it.
        folder: of the checkpoints.
        world: the processes.
        logs: of which lines may be lost: an older checkpoint, from which they are written again, is then better.

    Raises:
        CheckpointError: all are damaged, or it does not fit what is trained now.
    """
    whole = complete(folder)
    if world.first:
        for pointer in folder.glob(".latest.*.tmp"):
            pointer.unlink()
        for half_written in folder.glob(".step-*.tmp"):
            shutil.rmtree(half_written)
            sys.stderr.write(f"removed {half_written}: a kill or a full disk came before it was finished\n")
        for odd in sorted(set(folder.glob("step-*")) - set(whole)):
            text = f"{odd}: half-written, it has no {MANIFEST}; going back to the checkpoint before it"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    notes: dict[Path, str] = {}
    chosen = spare = None
    for path in reversed(whole):
        wrong = damage(path)
        note = wrong or lost_lines(path, logs)
        if note is None:
            chosen = path
            break
        notes[path] = note
        spare = spare or (path if wrong is None else None)
    chosen = chosen or spare
    for path, note in notes.items():
        if chosen is None or path > chosen:
            text = f"{path}: {note}; going back to the checkpoint before it"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    if chosen is None:
        if whole:
            raise CheckpointError(f"{folder}: every checkpoint is damaged", fix="delete the folder to start again")
        return None
    if chosen in notes:  # no step is lost, only what was noted of some
        text = f"{chosen} is used, because there is none before it: {notes[chosen]}, and the report will lack them"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return load_from(engine, chosen, world)


def load_from(engine: Engine, path: Path, world: World) -> RunState:
    """Load one whole checkpoint; repartition it where another number of processes saved it in slices.

    Rates, moments and decay stay those of the recipe.

    Raises:
        CheckpointError: its files do not hold what they must.
    """
    saved = read_manifest(path).state
    settings = engine.settings()
    with fitting(path):
        if saved.processes == world.size or not engine.zero_stage:
            step = engine.load(path.parent, path.name)["step"]
        else:
            if world.first:
                plural = "es" * (saved.processes > 1)
                sys.stderr.write(
                    f"{path} was saved by {saved.processes} process{plural}: "
                    f"its slices are repartitioned for {world.size}\n"
                )
            step = load_slices(engine, path, saved.processes)
        engine.put_settings(settings)
    if step != saved.step:
        raise misfit(path, f"its files are of step {step}")
    return {"step": saved.step, "ledger": saved.ledger}


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn the errors of other libraries about a checkpoint's content into ours."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, AssertionError, RuntimeError) as error:
        raise misfit(path, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error


def misfit(path: Path, why: str) -> CheckpointError:
    """Return the error of a checkpoint whose files are intact and do not fit."""
    return CheckpointError(
        f"{path} is not a checkpoint of this run: {why}",
        expected="the tensors of what the recipe trains, as `vlm train` saved them",
        fix=f"delete {path}: the run goes on from the checkpoint before it, or starts again",
    )
