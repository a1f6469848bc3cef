"""Errors that a user can fix, and the exit code of the `vlm` command for each.

    VlmError               1
    ├── ConfigError        2   a recipe, table, option or name is wrong
    │   └── UnknownName    2   with the nearest known names
    ├── DataError          3   a record, dataset or benchmark is missing or malformed
    │   └── MediaError     3   an image or video cannot be decoded
    ├── FetchError         4   network, checksum or disk while fetching
    ├── CheckpointError    5   weights or a training checkpoint do not fit
    ├── LockedError        6   another process works in the same directory
    ├── HardwareError      7   this machine cannot run what was asked
    └── Preempted          0   stopped on request with everything saved; rerun the same command to continue

Each prints without a traceback. Anything else is our bug and shows one. Ctrl-C exits with 130.
"""

import difflib
import errno
import logging
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vlm.core.text import printable, printable_lines


class VlmError(Exception):
    r"""An error with what was `found`, what was `expected` and how to `fix` it.

    >>> str(VlmError("3 placeholders, 2 images", expected="as many images as placeholders", fix="add an image"))
    '3 placeholders, 2 images\n  expected: as many images as placeholders\n  fix: add an image'
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str | None = None, fix: str | None = None):
        self.found, self.expected, self.fix = found, expected, fix
        lines = [found]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))


class ConfigError(VlmError):
    """A recipe, table, option or name is wrong.

    >>> raise ConfigError("--tokens 0", expected="a length above 0")    # doctest: +SKIP
    """

    exit_code = 2


class UnknownName(ConfigError):
    """`name` is not one of `known`; the message names the nearest ones.

    >>> print(UnknownName("set", "digit", ["charts", "digits"]))
    unknown set 'digit'
      expected: did you mean digits?
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, fix: str | None = None):
        known = sorted(known)
        lower: dict[str, list[str]] = {}
        for k in known:  # `V2PE-32K` and `v2pe-32k` may be two
            lower.setdefault(k.lower(), []).append(k)
        near = [k for n in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.4) for k in lower[n]]
        self.near = near
        expected = f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}", expected=expected, fix=fix)


class DataError(VlmError):
    """A record, dataset or benchmark is missing or malformed; the message names file and line.

    >>> raise DataError("train.jsonl:3: no `conversations`", fix="correct the line")    # doctest: +SKIP
    """

    exit_code = 3


class MediaError(DataError):
    """An image or video cannot be decoded; the message names the file.

    >>> load_image("missing.png")    # doctest: +SKIP
    MediaError: no such file: missing.png
    """


class FetchError(VlmError):
    """Fetching failed: network, checksum or disk.

    >>> fetch_url("https://example.org/missing", Path("file"))    # doctest: +SKIP
    FetchError: https://example.org/missing: the server answered 404
    """

    exit_code = 4


class CheckpointError(VlmError):
    """Weights, a tokenizer or a training checkpoint are missing, damaged or do not fit.

    >>> load_tokenizer("empty-folder")    # doctest: +SKIP
    CheckpointError: no tokenizer in empty-folder
    """

    exit_code = 5


class LockedError(VlmError):
    """Another process works in the same directory; the message names it.

    >>> with locked(Path("runs/a"), "vlm train"):    # doctest: +SKIP
    ...     ...                                      # a second process that holds runs/a gets a LockedError
    """

    exit_code = 6


class HardwareError(VlmError):
    """This machine does not have what was asked for: a device, memory or disk.

    >>> raise HardwareError("12 GB free", expected="40 GB", fix="choose another disk")    # doctest: +SKIP
    """

    exit_code = 7


class Preempted(VlmError):
    """A signal stopped the run after everything was saved: not a failure, the exit code is 0.

    >>> raise Preempted("stopped after step 12", fix="rerun the same command")    # doctest: +SKIP
    """

    exit_code = 0


@contextmanager
def only_vlm_errors(where: str) -> Iterator[None]:
    """Turn whatever one foreign record or file makes a library raise into a DataError that names its type.

    Put it around the work on one sample: a VlmError passes as it is, anything else costs this sample and not the run.
    There is no list of expected exceptions. The traceback goes to the log (`vlm`, level debug) and is the cause of the
    error, so that a fault of ours can be found.

    Args:
        where: The sample, for the message.

    >>> with only_vlm_errors("train.jsonl:3"):    # doctest: +SKIP
    ...     int("x")
    DataError: train.jsonl:3: ValueError: invalid literal for int() with base 10: 'x'
    """
    try:
        yield
    except VlmError:
        raise
    except Exception as error:
        logging.getLogger("vlm").debug("%s: %s", where, printable_lines("".join(traceback.format_exception(error))))
        raise DataError(
            f"{where}: {type(error).__name__}: {printable(error)}",
            fix="repair or remove the record; if it is a good one, report this",
        ) from error


_AGAIN = "then rerun the same command"
_ROOM = f"free space on the disk of that path, or name a folder on another one; {_AGAIN}"
_RIGHT = f"change who may use that path (`ls -ld` shows it), or name another folder; {_AGAIN}"
_PATH = f"check that path, {_AGAIN}"
_NETWORK = f"check the network, {_AGAIN}"
_FILES = f"allow more open files, for example `ulimit -n 4096`; {_AGAIN}"

_OF_THE_SYSTEM: dict[str, tuple[type[VlmError], str]] = {
    "ENOSPC": (HardwareError, _ROOM),
    "EDQUOT": (HardwareError, _ROOM),
    "EFBIG": (HardwareError, f"allow larger files (`ulimit -f`), or name a folder on another disk; {_AGAIN}"),
    "EMFILE": (HardwareError, _FILES),
    "ENFILE": (HardwareError, _FILES),
    "EACCES": (VlmError, _RIGHT),
    "EPERM": (VlmError, _RIGHT),
    "EROFS": (VlmError, f"name a folder on a disk that can be written to; {_AGAIN}"),
    "ENAMETOOLONG": (ConfigError, f"choose a shorter name; {_AGAIN}"),
    **dict.fromkeys(("ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP"), (DataError, _PATH)),
    **dict.fromkeys(("ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH"), (FetchError, _NETWORK)),
}
"""Error of the operating system -> what it is here, and what to do."""


def of_system(error: OSError) -> VlmError | None:
    """Return an error of the operating system as one with a path, a reason and a fix; None for one without a number.

    >>> print(of_system(OSError(28, "No space left on device", "runs/a")).found)
    runs/a: No space left on device (ENOSPC)
    """
    if not isinstance(error.errno, int):
        return None
    code = errno.errorcode.get(error.errno, str(error.errno))
    place = "a file or a pipe" if error.filename is None else printable(error.filename)
    kind, fix = _OF_THE_SYSTEM.get(code, (VlmError, f"check that path and its disk, {_AGAIN}"))
    return kind(f"{place}: {printable(error.strerror)} ({code})", fix=fix)
