"""Relative paths in tables and archives, which must stay below their folder."""

from typing import Annotated

from pydantic import BeforeValidator


def is_inside(path: str) -> bool:
    """Return whether a relative path stays below its folder: not absolute, no `..`, no backslash, no drive.

    >>> is_inside("a/b.png"), is_inside("a/../../b.png"), is_inside("C:/b.png")
    (True, False, False)
    """
    parts = path.split("/")
    return not (path.startswith("/") or "\\" in path or ".." in parts or ":" in parts[0] or "\0" in path)


def _inside(path: str) -> str:
    if not is_inside(path):
        raise ValueError("must stay below its folder: relative, without `..`")
    return path


InsidePath = Annotated[str, BeforeValidator(_inside)]
