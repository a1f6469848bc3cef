"""Foreign text made safe to show.

printable("a\\x1b[31mred")     # 'a\\\\x1b[31mred'
"""

import unicodedata

# Cc: control characters, Cf: invisible ones (they can turn the direction of a line), Cs: halves of a surrogate pair
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


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
    if said.isascii() and said.isprintable():
        return said
    return "".join(
        c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in _HIDDEN else c for c in said
    )


def lines_printable(text: str, limit: int = 400) -> str:
    r"""Return a message of several lines with each of them made safe to show, at most `limit` characters long.

    >>> lines_printable("red \x1b[31m\n  fix: repaint")
    'red \\x1b[31m\n  fix: repaint'
    """
    return "\n".join(printable(line, limit) for line in text.split("\n"))


def shown(path: object, limit: int = 200) -> str:
    """Return a path safe to show; in quotes where blanks at its ends or around a `/` would not be seen.

    >>> shown("a/b.png"), shown("a/ b.png")
    ('a/b.png', "'a/ b.png'")
    """
    said = printable(path, limit)
    return repr(said) if any(part != part.strip() for part in said.split("/")) else said
