"""`vlm cite`: the papers of the systems, as BibTeX."""

import re
from importlib.resources import files
from typing import Annotated

import typer

from vlm.cli.show.say import say
from vlm.core.errors import UnknownName

app = typer.Typer(add_completion=False)


def citations() -> dict[str, str]:
    """Return key -> BibTeX entry of the systems."""
    text = (files("vlm.cli.published") / "citations.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"\n\s*\n", text) if entry.strip()]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}


@app.command()
def cite(
    systems: Annotated[list[str] | None, typer.Argument(metavar="SYSTEM...", help="By default all of them.")] = None,
) -> None:
    """Show the papers of the published systems as BibTeX.

    Example: vlm cite v2pe convllava >> paper.bib
    """
    known = citations()
    by_lower = {key.lower(): key for key in known}
    if unknown := next((name for name in systems or () if name.lower() not in by_lower), None):
        raise UnknownName("system", unknown, known)
    chosen = [by_lower[name.lower()] for name in systems or known]
    say("\n\n".join(known[key] for key in dict.fromkeys(chosen)))
