"""The one way to print tables on a terminal: texts are shown as they are, and nothing in them is obeyed.

A name, a title, a path or a reply comes from a file or a server. `[red]` in it is no color, `[/]` ends no command, and
an escape sequence moves no cursor. A style of ours is a `Text`: `screen.print(bold(title))`.
"""

from typing import Any

from rich.console import Console
from rich.text import Text

from vlm.core.text import printable_lines


class Screen(Console):
    """A rich console for which a text is only a text, also as the cell or the title of a table."""

    def __init__(self, *, stderr: bool = False):
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text without a character that a terminal obeys."""
        return super().render_str(printable_lines(text), **options)


def styled(text: str, style: str = "") -> Text:
    """Return a text in a style of ours, such as `bold` or `red`."""
    return Text(printable_lines(text), style)


def bold(text: str) -> Text:
    """Return a text in bold."""
    return styled(text, "bold")
