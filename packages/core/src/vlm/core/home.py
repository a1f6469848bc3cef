"""The published folder trees, atomic writes, and the lock of a working directory."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlm.core.errors import LockedError


def home() -> Path:
    """`$VLM_HOME`, by default the working directory. It holds `pretrained/`, `dataset/` and `runs/`."""
    return Path(os.environ.get("VLM_HOME", ".")).resolve()


def pretrained() -> Path:
    """Folder of downloaded and converted weights."""
    return home() / "pretrained"


def dataset() -> Path:
    """Folder of organized training sets and benchmarks."""
    return home() / "dataset"


def runs() -> Path:
    """Folder of training runs, evaluations and reports."""
    return home() / "runs"


def resolve(path: str | Path) -> Path:
    """A path as a recipe or a flag names it: absolute, or relative to the home."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else home() / path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write to a temporary name beside `path`, flush to disk, then rename: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of sorted, indented JSON with a final newline."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Hold `folder` for this process; the kernel releases it when the process dies, however it dies.

    Temporary files of `write_atomic` that a killed holder left in the folder are removed.

    Raises:
        LockedError: another process holds it; names its purpose, pid and host.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".lock.json"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = holder.read_text().strip() if holder.exists() else "unknown"
        raise LockedError(
            f"{folder} is in use by {who}", fix="wait for it, stop it, or choose another directory"
        ) from error
    try:
        for left in folder.glob(".*.[0-9]*.tmp"):
            left.unlink(missing_ok=True)
        # in place: for people alone, and a kill between two names would leave a third
        holder.write_text(json.dumps({"purpose": purpose, "pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
