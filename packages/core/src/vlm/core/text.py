"""Foreign text made safe to show.

printable("a\\x1b[31mred")     # 'a\\\\x1b[31mred'
printable_lines(piece)         # of a reply, as it comes: its lines stay
printable_json(value)          # JSON on a screen
"""

import json
import unicodedata
from typing import Any

# Cc: control characters, Cf: invisible ones (they can turn the direction of a line), Cs: halves of a surrogate pair
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_IN_TEXT = "\n\t\u200c\u200d"
"""Hidden characters that texts need: lines, and the joiners of Persian, Hindi and emoji."""


def printable(text: object, limit: int = 200) -> str:
    r"""Return `text` on one line, without a character that a terminal obeys or an encoder refuses.

    Use it for every piece of a file, a server's answer or a model's reply that goes into a message or onto a screen.

    Args:
        text: Anything; `str` is applied to what is no string.
        limit: The most characters to return; the middle of a longer text is replaced by "…".

    >>> printable("red: \x1b[31m, ten lines: \n, half a pair: \ud800")
    'red: \\x1b[31m, ten lines: \\n, half a pair: \\ud800'
    >>> printable("0123456789", limit=5)
    '01…89'
    """
    said = text if isinstance(text, str) else str(text)
    if len(said) > limit:
        half = (limit - 1) // 2
        said = said[: limit - 1 - half] + "…" + said[len(said) - half :]
    return _escaped(said, kept="")


def printable_lines(text: str) -> str:
    r"""Return a text with its lines, without a character that a terminal obeys or an encoder refuses.

    Each character is treated by itself, so the pieces of a reply can be passed as they come.

    >>> printable_lines("one\ntwo \x1b]0;title\x07")
    'one\ntwo \\x1b]0;title\\x07'
    """
    return _escaped(text, kept=_IN_TEXT)


def printable_json(value: Any, **options: Any) -> str:
    r"""Return JSON as text, in which characters that a terminal obeys are written as JSON escapes them.

    Args:
        value: What `json.dumps` takes.
        options: Its options, without `ensure_ascii`.

    >>> printable_json({"name": "caf\u00e9 \x9b31m"})
    '{"name": "café \\u009b31m"}'
    """
    said = json.dumps(value, ensure_ascii=False, **options)
    if said.isascii() and "\x7f" not in said:
        return said
    return "".join(json.dumps(c)[1:-1] if c == "\x7f" or _is_hidden(c, _IN_TEXT) else c for c in said)


def _escaped(said: str, kept: str) -> str:
    if said.isascii() and said.isprintable():
        return said
    return "".join(c.encode("unicode_escape").decode("ascii") if _is_hidden(c, kept) else c for c in said)


def _is_hidden(c: str, kept: str) -> bool:
    return c not in kept and unicodedata.category(c) in _HIDDEN


def shown(path: object, limit: int = 200) -> str:
    """Return a path safe to show; in quotes where blanks at its ends or around a `/` would not be seen.

    >>> shown("a/b.png"), shown("a/ b.png")
    ('a/b.png', "'a/ b.png'")
    """
    said = printable(path, limit)
    return repr(said) if any(part != part.strip() for part in said.split("/")) else said
