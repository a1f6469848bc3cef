"""Training checkpoints: complete, written under a temporary name, then renamed. A damaged one is skipped aloud."""

import errno
import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlm.core.errors import CheckpointError, VlmError
from vlm.core.home import write_atomic, write_json
from vlm.train.run import reslice
from vlm.train.run.engine import Engine
from vlm.train.run.processes import World

MANIFEST = "manifest.json"


def name(step: int) -> str:
    return f"step-{step:08d}"


def file_digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""Faults of a disk that a user can mend."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says so; anything else passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise disk_error(folder, f"{error.strerror} ({error.filename or 'writing'})") from error
    except SafetensorError as error:
        raise disk_error(folder, str(error)) from error
    except RuntimeError as error:
        if not any(mark in str(error) for mark in ("PytorchStreamWriter", "inline_container")):
            raise
        raise disk_error(folder, "torch.save could not write all of a file") from error


def free_gb(folder: Path) -> float:
    """Room on the disk of a folder, which need not be there yet."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(place).free / 1e9


def disk_error(folder: Path, reason: str) -> VlmError:
    return VlmError(
        f"cannot write below {folder}: {reason}; its disk has {free_gb(folder):.3g} GB free",
        expected="a writable folder with free room",
        fix="make room there, or rights, then run the same command: it goes on from the last checkpoint",
    )


def save(engine: Engine, folder: Path, state: dict[str, Any], keep: int, world: World) -> None:
    """Save the step in `state["step"]`, then drop all but the newest `keep`.

    A kill at any moment leaves the last one whole; so does a full disk, and what was written by then is removed.
    """
    temporary, final = folder / f".{name(state['step'])}.tmp", folder / name(state["step"])
    if world.first:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    world.barrier()
    state = {**state, "processes": world.size}
    try:
        engine.deepspeed.save_checkpoint(
            str(folder), tag=temporary.name, client_state=state, save_latest=False, exclude_frozen_parameters=True
        )
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
    """Finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / MANIFEST).exists())


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint on disk, or None."""
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


def load(engine: Engine, folder: Path, world: World) -> dict[str, Any] | None:
    """Load the newest whole checkpoint; None when there is none. Says so when it has to go back to an older one.

    As many processes as wrote it go on bit for bit; another number takes the same samples, to rounding the same steps.

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
        wrong = fault(path)
        if wrong is None:
            told = json.loads((path / MANIFEST).read_text())["state"]
            if told["processes"] != world.size and engine.deepspeed.zero_optimization_stage():
                if world.first:
                    writers = f"{told['processes']} process{'es' * (told['processes'] > 1)}"
                    sys.stderr.write(f"{path} was written by {writers}: its slices are cut anew for {world.size}\n")
                reslice.load(engine, path, told["processes"])
                return told
            _, state = engine.deepspeed.load_checkpoint(str(folder), tag=path.name, load_module_strict=False)
            return state
        warnings.warn(f"{path}: {wrong}; going back to the checkpoint before it", RuntimeWarning, stacklevel=2)
    if whole:
        raise CheckpointError(f"{folder}: every checkpoint is damaged", fix="delete the folder to start again")
    return None
