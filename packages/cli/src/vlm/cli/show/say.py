"""The one way to print lines and JSON: nothing in them is obeyed by a terminal, and no encoder refuses them."""

from typing import Any

import typer

from vlm.core.text import printable_json, printable_lines


def say(text: object = "", *, err: bool = False, end: str = "\n", **style: Any) -> None:
    """Print lines on standard output, or with `err` on standard error; `style` as in `typer.style`."""
    shown = printable_lines(str(text))
    typer.echo((typer.style(shown, **style) if style else shown) + end, err=err, nl=False)


def say_json(value: Any, **options: Any) -> None:
    """Print a value as indented JSON on standard output; what a terminal obeys is escaped as JSON does."""
    typer.echo(printable_json(value, indent=1, **options))
