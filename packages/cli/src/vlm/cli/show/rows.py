"""Rows of a list, one line each: a name is never cut, and what has no room is left out by name."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size

from vlm.cli.show.say import say
from vlm.core.text import printable

SHORTENED = ("licence", "title", "folder", "benchmarks")
"""Columns that may be cut at their end."""

LEAST = 8
"""Characters of a shortened column that are worth showing."""


def show_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows with the same keys below each other on standard output, as wide as the terminal; all into a file."""
    if not rows:
        say("nothing")
        return
    keys = list(rows[0])
    cells = [[printable(row[key]) for key in keys] for row in rows]
    widths = [max(cell_len(text) for text in (key, *column)) for key, *column in zip(keys, *cells, strict=True)]
    room, shown = room_of_line(), 0
    for i, key in enumerate(keys):
        least = min(widths[i], LEAST) if key in SHORTENED else widths[i]
        if i and least > room:
            break
        widths[i] = min(widths[i], max(room, least)) if i else widths[i]
        room, shown = room - widths[i] - 2, i + 1
    for line in [keys, *cells]:
        texts = [fitted(line[i], widths[i]) for i in range(shown)]
        say("  ".join(texts).rstrip(), bold=line is keys)
    if left := keys[shown:]:
        say(f"no room for {', '.join(left)}: a wider terminal shows them, and --json", err=True)


def room_of_line() -> int:
    """Return the columns of the terminal; without one no line is too long."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return shutil.get_terminal_size().columns if known else 1 << 20


def fitted(text: str, width: int) -> str:
    """Return a text in exactly so many columns: filled up, or cut with "…" at its end."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
