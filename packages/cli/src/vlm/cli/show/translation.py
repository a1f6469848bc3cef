"""Show what published lines become: the command on standard output, what differs on standard error."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vlm.cli.show.say import say

if TYPE_CHECKING:
    from vlm.cli.published.lines import Translation


def show_translations(found: "Iterable[Translation]") -> None:
    """Show commands so that they can be piped into a shell; notes and losses beside them."""
    for one in found:
        say(f"# {one.line}", err=True)
        for command in one.commands:
            say(command)
        for note in one.notes:
            say(f"#   {note}", err=True)
        for lost in one.without:
            say(f"#   no counterpart: {lost}", err=True, fg="yellow")
