"""Errors a user can mend. The tree, with the exit code of the `vlm` command:

    VlmError               1
    ├── ConfigError        2   a recipe, table, flag or name is wrong
    │   └── UnknownName    2   with the nearest known names
    ├── DataError          3   a record, dataset or benchmark is missing or malformed
    │   └── MediaError     3   an image or video cannot be decoded
    ├── FetchError         4   network, checksum, disk while fetching
    ├── CheckpointError    5   weights or a training checkpoint do not fit
    ├── LockedError        6   another process works in the same directory
    ├── HardwareError      7   this machine cannot run what was asked
    └── Preempted          0   stopped on request with everything saved; the same command goes on

Each prints without a traceback. Anything else is a bug of ours and shows one. Ctrl-C exits with 130.
"""

import difflib
from collections.abc import Iterable


class VlmError(Exception):
    """An error with what was `found`, what was `expected` and how to `fix` it.

    >>> str(VlmError("3 placeholders, 2 images", expected="as many images as placeholders", fix="add an image"))
    '3 placeholders, 2 images\\n  expected: as many images as placeholders\\n  fix: add an image'
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
    """A recipe, table, flag or name is wrong."""

    exit_code = 2


class UnknownName(ConfigError):
    """`name` is not one of `known`; the message names the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, fix: str | None = None):
        known = sorted(known)
        lower = {k.lower(): k for k in known}
        near = [lower[n] for n in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.4)]
        expected = f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}", expected=expected, fix=fix)


class DataError(VlmError):
    """A record, dataset or benchmark is missing or malformed."""

    exit_code = 3


class MediaError(DataError):
    """An image or video cannot be decoded; the message names the file."""


class FetchError(VlmError):
    """Fetching failed: network, checksum or disk."""

    exit_code = 4


class CheckpointError(VlmError):
    """Weights or a training checkpoint are missing, damaged or do not fit."""

    exit_code = 5


class LockedError(VlmError):
    """Another process works in the same directory; the message names it."""

    exit_code = 6


class HardwareError(VlmError):
    """This machine lacks what was asked for."""

    exit_code = 7


class Preempted(VlmError):
    """Stopped by a signal after everything was saved: not a failure."""

    exit_code = 0
