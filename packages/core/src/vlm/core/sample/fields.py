"""Values of a record: what JSON gave instead of a text, a path or a range of seconds."""

import re
from typing import Any

from vlm.core.text import printable

NAME_BYTES, PATH_BYTES = 255, 4095
LONGEST = 1e9
"""Seconds at which no video ends."""

PICTURES = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""How a PNG, JPEG, GIF and WebP file begins as base64."""
SHORTEST = 64
"""No picture is so short as base64."""

JSON_NAMES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text"} | {
    list: "a list",
    dict: "an object",
}


def named(value: Any) -> str:
    """Return what a JSON value is, in words."""
    return JSON_NAMES.get(type(value), type(value).__name__)


def whole(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair, which no encoding and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def no_path(name: Any) -> str | None:
    """Return why a value can be the path of no file, or None."""
    if not isinstance(name, str):
        return f"is {named(name)}, expected a path or a list of paths"
    if not name or name.isspace():
        return "is an empty text, expected a path; leave the key out where there is no file"
    if name.startswith("data:") or (len(name) > SHORTEST and name.startswith(PICTURES)):
        return "holds the file itself as base64: that is not read, expected a path"
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", name):
        return f"is a URL ({match[1].lower()}): nothing is fetched, expected a path"
    if not whole(name) or "\0" in name:
        return f"is a name that no file can have: {printable(name, 80)}"
    if len(name) > PATH_BYTES or any(len(part.encode()) > NAME_BYTES for part in name.split("/")):
        coded = re.fullmatch(r"[A-Za-z0-9+/_=\s-]+", name) is not None
        return f"is too long for a file's name{' (base64 is not read)' if coded else ''}: {printable(name, 40)}"
    return None


def no_clip(clip: Any) -> str | None:
    """Return why a value is no range [start, end] in seconds, or None.

    >>> no_clip([0, 1.5]), no_clip("0-2")
    (None, "is '0-2', expected [start, end] in seconds")
    """
    if not isinstance(clip, list) or len(clip) != 2 or not all(type(t) in (int, float) for t in clip):
        return f"is {printable(repr(clip), 60)}, expected [start, end] in seconds"
    if not 0 <= clip[0] < clip[1] < LONGEST:
        return f"is {printable(repr(clip), 60)}, expected 0 <= start < end"
    return None
