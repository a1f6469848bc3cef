"""Relative paths in tables and archives that must not leave their folder."""

from typing import Annotated

from pydantic import BeforeValidator


def is_inside(path: str) -> bool:
    """Whether a relative path names something below its folder: not absolute, no `..`, no backslash or drive.

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
