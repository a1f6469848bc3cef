"""Pieces of Markdown that the generated pages share."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; columns that are empty in every row are left out."""
    body = [[cell(value) for value in row] for row in rows]
    kept = [i for i in range(len(head)) if any(row[i] for row in body)]
    lines = [[head[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(value: Any) -> str:
    """Return a value as the text of one table cell."""
    text = "" if value is None else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def code(value: Any) -> str:
    """Return a value as inline code; an empty one stays empty."""
    text = " ".join(str(value).split())
    if not text:
        return ""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def escape(text: str) -> str:
    """Return text in which no character outside inline code is Markdown or HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if i % 2 else re.sub(r"([\\*_<>\[\]#])", r"\\\1", part) for i, part in enumerate(parts))


def literal(value: Any) -> str:
    """Return a value of a YAML table as it is written there, as inline code."""
    return code(_yaml(value))


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str):
        return value.replace("\n", "\\n")
    return "null" if value is None else str(value)
