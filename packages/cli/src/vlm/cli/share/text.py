"""Text for a model card: cells of its tables, and paths without the folders of this machine."""

import re
from pathlib import Path
from typing import Any

from vlm.core.text import printable


def cell(text: object) -> str:
    r"""Return a text that stays in one cell of a Markdown table.

    >>> cell("a|b\nc")
    'a\\|b\\nc'
    """
    return printable(text, limit=500).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def shown(path: str) -> str:
    """Return a path without the folders of this machine.

    >>> shown("/home/ada/pictures/train.jsonl"), shown("dataset/digits/train.jsonl")
    ('train.jsonl', 'dataset/digits/train.jsonl')
    """
    outside = Path(path).is_absolute() or path.startswith("~") or ".." in Path(path).parts or "\\" in path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] if outside else path


def without_paths(value: Any) -> Any:
    """Return a value of a recipe with every path outside of the home reduced to its last part.

    >>> without_paths({"file": "/home/ada/train.jsonl", "lr": "  start: /a/b -> /c/d"})
    {'file': 'train.jsonl', 'lr': '  start: b -> d'}
    """
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    if not isinstance(value, str):
        return value
    if shown(value) != value and not re.search(r"\s", value):
        return shown(value)
    return re.sub(r"(?<![\w.\-/])(?:~|[A-Za-z]:)?[/\\][^\s'\",:]+", lambda match: shown(match[0]), value)
