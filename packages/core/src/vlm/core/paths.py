"""Relative paths in tables, archives, downloads and manifests, which must stay below their folder; names of files."""

import hashlib
import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from vlm.core.reading import READ_SECONDS, within

LONGEST = 200
"""Bytes of a name that becomes a file or folder; file systems take 255, and endings are added to it."""


def is_inside(path: str) -> bool:
    """Return whether a relative path stays below its folder: not absolute, no `..`, no backslash, no drive.

    >>> is_inside("a/b.png"), is_inside("a/../../b.png"), is_inside("C:/b.png")
    (True, False, False)
    """
    parts = path.split("/")
    return not (path.startswith("/") or "\\" in path or ".." in parts or ":" in parts[0] or "\0" in path)


def is_control(path: str) -> bool:
    """Return whether a path names a file or folder in which this program keeps its own state, at any depth.

    Such names (`.vlm-*`, `.partial`, `.lock`, `.lock.*`) are never accepted from an archive or a download: the
    program would obey them later. Upper and lower case are the same, as on the disks of Windows and macOS.

    >>> is_control("a/.vlm-manifest.json"), is_control(".partial/install.json"), is_control("a/b.png")
    (True, True, False)
    """
    parts = path.lower().split("/")
    return any(part.startswith((".vlm-", ".lock.")) or part in (".partial", ".lock") for part in parts)


def is_data(path: str) -> bool:
    """Return whether a path from a file or a server may be used: it stays below its folder and is no control name.

    >>> is_data("a/b.png"), is_data("../b.png"), is_data(".partial/install.json")
    (True, False, False)
    """
    return is_inside(path) and not is_control(path)


def _inside(path: str) -> str:
    if not (isinstance(path, str) and is_inside(path)):
        raise ValueError("must stay below its folder: relative, without `..`")
    return path


InsidePath = Annotated[str, BeforeValidator(_inside)]


def exists(path: str | Path) -> bool:
    """Return whether something is there; False for a name that no file can have, where `Path.exists` raises.

    Raises:
        DataError: The disk does not answer.

    >>> exists("a/" * 5000), exists("a\0b")
    (False, False)
    """
    try:
        # the one place: Path.exists raises for some names and not for others
        within(READ_SECONDS, str(path), lambda: os.stat(path))  # noqa: PTH116
    except (OSError, ValueError):
        return False
    return True


def is_name(name: str) -> bool:
    """Return whether a name can be that of one file or folder: no path, nothing hidden, nothing that cannot be shown.

    >>> is_name("V2PE-32K"), is_name("../../x"), is_name("a/b"), is_name(".lock"), is_name("x" * 300)
    (True, False, False, False, False)
    """
    plain = name.isprintable() and name == name.strip() and not name.startswith(".")
    return bool(name) and plain and not {"/", "\\"} & set(name) and len(os.fsencode(name)) <= LONGEST


def as_name(text: str) -> str:
    """Return a text as a name (see `is_name`): what cannot be in one becomes `-`, and a long one ends with its digest.

    >>> as_name("llava:7b"), as_name("../x"), len(as_name("x" * 300))
    ('llava:7b', '-x', 100)
    """
    name = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in text).strip().lstrip(".")
    if len(os.fsencode(name)) > LONGEST:
        end = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
        name = f"{name[: (100 if name.isascii() else 40) - 13]}-{end}"
    return name or "unnamed"


def _name(name: str) -> str:
    if not (isinstance(name, str) and is_name(name)):
        raise ValueError(f"must be a name of at most {LONGEST} bytes without `/`, `\\\\` or a dot in front")
    return name


FileName = Annotated[str, BeforeValidator(_name)]
"""A name that becomes a file or folder (see `is_name`)."""
