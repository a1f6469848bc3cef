"""The folders below `$VLM_HOME`; files and folders that appear in one piece; the lock of a working folder.

with locked(runs() / "stage1", "vlm train"):
    write_json(runs() / "stage1" / "summary.json", {"steps": 20})
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from vlm.core.errors import DataError, LockedError, VlmError
from vlm.core.reading import check_regular
from vlm.core.text import printable


def home() -> Path:
    """Return `$VLM_HOME`, by default the working directory. It holds `pretrained/`, `dataset/` and `runs/`."""
    return Path(os.environ.get("VLM_HOME", ".")).resolve()


def pretrained() -> Path:
    """Return the folder of downloaded and converted weights."""
    return home() / "pretrained"


def dataset() -> Path:
    """Return the folder of organized training sets and benchmarks."""
    return home() / "dataset"


def runs() -> Path:
    """Return the folder of training runs, evaluations and reports."""
    return home() / "runs"


def resolve(path: str | Path) -> Path:
    """Return the absolute path of what a recipe or an option names: `~` expanded, relative paths below the home."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else home() / path


def lookup(path: str | Path) -> Path:
    """Return the absolute path of what a person names: where they stand, or below the home if it is only there."""
    path = Path(path).expanduser()
    here = path.absolute()
    with suppress(OSError, ValueError):  # a name that no disk can hold
        if not here.exists() and resolve(path).exists():
            return resolve(path)
    return here


def free_gb(folder: Path) -> float:
    """Return the free space in GB (10^9 bytes) on the disk of a folder, which need not exist yet."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(place).free / 1e9


def beside(name: str, suffix: str) -> str:
    """Return the hidden name of a temporary file for `name`; a long name is replaced by its digest.

    File systems hold 255 bytes in a name, and `name` may have them all.

    >>> beside("a.bin", ".part")
    '.a.bin.part'
    """
    long = len(os.fsencode(name)) + len(suffix) > 254
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest() if long else name}{suffix}"


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let errors of the operating system name `path` where they name no file, or a temporary one.

    A write that fails because the disk is full does not say which file it was.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else ""
        if error.errno is not None and (not named or (temporary and Path(named).is_relative_to(temporary))):
            error.filename = str(path)
        raise


@contextmanager
def new_file(path: Path, *, held: bool = False, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends without an error.

    A reader never sees half a file. After an error the temporary file is removed and `path` is as before.

    Args:
        path: The file to make; its folder is made too.
        held: The folder is held with `locked`, so that no other process writes the file. The temporary name is then
            the same in every run, and what a killed run left is overwritten.
        flush: Wait until the content is on the disk before the rename.

    >>> with new_file(Path("report.csv")) as temporary:     # doctest: +SKIP
    ...     table.to_csv(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(beside(path.name, ".part" if held else f".{os.getpid()}.tmp"))
    with naming(path, temporary):
        try:
            yield temporary
            if flush:
                with temporary.open("rb") as f:
                    os.fsync(f.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` when the block ends without an error.

    A folder that is at `path` by then is replaced. After an error the temporary folder is removed; what a killed run
    left is removed by the next one.

    >>> with new_folder(Path("pretrained/X")) as temporary:     # doctest: +SKIP
    ...     write_weights(temporary)
    """
    path = Path(path)
    temporary = path.with_name(beside(path.name, ".tmp"))
    with naming(path, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file in one piece, flushed to the disk: a reader sees the old content or the new, never half of one.

    Args:
        path: The file; its folder is made if it is missing.
        content: Text is encoded as UTF-8.
    """
    with new_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, in_order: bool = False) -> None:
    """Write a value as JSON with `write_atomic`: keys sorted, indented by 1, with a final newline.

    Args:
        path: The file.
        value: Any value of JSON.
        in_order: The keys are in order: they are written as they come, so that no list of them is made.
    """
    encoder = json.JSONEncoder(indent=1, sort_keys=not in_order, ensure_ascii=False)
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as f:
        f.writelines(encoder.iterencode(value))  # piece by piece: a manifest of many files is never one text
        f.write("\n")


def read_json(path: Path, *, fix: str | None = None) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file, in UTF-8.
        fix: What the error message advises when the file is missing or malformed.

    Raises:
        DataError: The file is missing, cannot be read, or is not JSON; the message names it.
    """
    check_regular(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}", fix=fix) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}", fix=fix) from error


def read_object(path: Path, error: type[VlmError] = DataError, *, fix: str | None = None) -> dict[str, Any]:
    """Return the object in a JSON file that somebody else wrote.

    Args:
        path: The file, in UTF-8. Only a regular file is opened: a pipe would block.
        error: The error to raise.
        fix: What the error message advises.

    Raises:
        VlmError: No regular file, unreadable, not JSON, nested too deeply, or no object; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise error(f"{path} is no regular file" if path.exists() else f"no such file: {path}", fix=fix)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}", fix=fix) from fault
    except (ValueError, RecursionError) as fault:
        raise error(f"{path} is not JSON: {printable(fault)}", fix=fix) from fault
    if not isinstance(value, dict):
        raise error(f"{path} holds a {type(value).__name__}", expected="a JSON object", fix=fix)
    return value


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text in a line format (JSONL, TSV, lists of names), which end at `\n` or `\r\n`.

    `str.splitlines` also ends a line at U+2028, U+0085, a form feed, a lone carriage return and others, which may occur
    inside a cell and, most of them, unescaped inside a JSON string.

    >>> split_lines('{"reply": "a\u2028b"}\n{"reply": "c"}\n')
    ['{"reply": "a\u2028b"}', '{"reply": "c"}']
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def _holder_of(note: Path, seconds: float = 1.0) -> str:
    """Return what the holder of a lock wrote about itself; it may have taken the lock this very moment."""
    until = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if said := note.read_text(errors="replace").strip():
                return said
        if time.monotonic() >= until:
            return "another process"
        time.sleep(0.01)


NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of a file system (Lustre without `-o flock`, some NFS and FUSE) on which the kernel locks no file."""


def _lock(folder: Path, wait: float) -> BaseFileLock:
    """Return the lock of a folder, held. Raises Timeout when another process holds it."""
    lock: BaseFileLock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_FLOCK:
            raise
        lock = SoftFileLock(folder / ".lock.soft")  # a file that names its holder; one of this machine is known as dead
        lock.acquire(timeout=wait)
    return lock


@contextmanager
def locked(folder: Path, purpose: str, *, wait: float = 0) -> Iterator[None]:
    """Hold a folder for this process; the kernel releases it when the process ends, however it ends.

    Where the file system has no locks, a file names the holder instead; what a killed one left on another machine must
    be removed by hand. Temporary files of `write_atomic` that a killed holder left in the folder are removed.

    Args:
        folder: It is made if it is missing.
        purpose: What this process does there, for the message that another process shows.
        wait: Seconds to wait for another process to release the folder.

    Raises:
        LockedError: Another process holds the folder; the message names its purpose, pid and host.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".lock.json"
    try:
        lock = _lock(folder, wait)
    except Timeout as error:
        soft = folder / ".lock.soft"
        killed = f", or remove {soft} if it was killed" if soft.exists() else ""
        raise LockedError(
            f"{folder} is in use by {_holder_of(holder)}",
            fix=f"wait for it, stop it{killed}, or choose another directory",
        ) from error
    try:
        for left in folder.glob(".*.[0-9]*.tmp"):
            left.unlink(missing_ok=True)
        # written in place: only people read it, and a kill before a rename would leave a third file
        with naming(holder):
            holder.write_text(json.dumps({"purpose": purpose, "pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


FRESH = 60.0
"""Seconds in which a new temporary folder may not be locked yet."""


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Yield a folder for this process among the temporary files, removed at the end.

    Folders of the same name that killed processes have left are removed first.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{name}-*"):
        with suppress(LockedError, OSError):  # another process's, or another user's
            if time.time() - left.stat().st_mtime > FRESH:
                with locked(left, name):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        with locked(folder, name):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
