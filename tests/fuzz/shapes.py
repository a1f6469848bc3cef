"""Strategies that start from a well-formed input and break it in a few places.

Random bytes are refused at the first character; what is wrong in one place only gets far into a reader.
"""

import copy
import json
from typing import Any

from hypothesis import strategies as st

LONG, DEEP = 5_000, 1_200

NAMES = st.sampled_from(
    [
        "a",
        "b.png",
        "..",
        ".",
        "",
        " ",
        "/",
        "C:",
        "~",
        "-x",
        "*",
        "[red]",
        "é",
        "e\u0301",
        "\u202e",
        "\x00",
        "\n",
        "\ud800",
        ".vlm-manifest.json",
        ".partial",
        ".lock",
        "CON",
        "x" * 256,
        "0.png",
    ]
)
"""Parts of paths: ordinary ones, ways out of a folder, names that are kept, names that a disk or a screen refuses."""

PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)

TEXTS = (
    st.text(st.characters(exclude_categories=[]), max_size=20)
    | PATHS
    | st.sampled_from(
        [
            "<image>",
            "<image>\n<image>",
            "<video>",
            "<IMG_CONTEXT>",
            "</s>",
            "<|im_end|>",
            "nan",
            "None",
            "=1+1",
            "答案是B。",
            "{run}",
            "{{ 1 }}",
            "data:image/png;base64,AAAA",
            "file:///etc/hosts",
            "\u2028",
            "A" * LONG,
            "1e999",
            "-0",
        ]
    )
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30, 10**400])
    | st.floats()
    | TEXTS
)

VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a nested one, its own first."""
    found = [at]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        found += places(below, (*at, key))
    return found


@st.composite
def broken(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """Draw a copy of a JSON value with up to `most` places changed, removed, renamed, doubled or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, most))):
        *way, last = draw(st.sampled_from(places({"": value})[1:]))
        holder: Any = {"": value}
        for key in way:
            holder = holder[key]
        match draw(st.sampled_from(["change", "change", "remove", "rename", "wrap", "double"])):
            case "change":
                holder[last] = draw(VALUES)
            case "remove" if len(way):
                del holder[last]
            case "rename" if isinstance(holder, dict) and len(way):
                holder[draw(TEXTS)] = holder.pop(last)
            case "wrap":
                holder[last] = [holder[last]]
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
        if not len(way):
            value = holder[""]
    return value


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw `content` as a disk or a network may leave it: mostly whole, or cut, or with other bytes inside."""
    match draw(st.sampled_from(["whole"] * 5 + ["cut", "bytes", "twice", "mark"])):
        case "cut":
            return content[: draw(st.integers(0, len(content)))]
        case "bytes" if content:
            at = draw(st.integers(0, len(content) - 1))
            return content[:at] + draw(st.binary(max_size=4)) + content[at + draw(st.integers(0, 4)) :]
        case "twice":
            return content * 2
        case "mark":
            return b"\xef\xbb\xbf" + content
    return content


def as_json(value: Any) -> bytes:
    """Encode as JSON; half a surrogate pair becomes an escape, as other programs write it."""
    return json.dumps(value, ensure_ascii=True).encode()


def nested(depth: int = DEEP) -> bytes:
    """Return JSON lists one inside the other."""
    return b"[" * depth + b"]" * depth
