"""`vlm workflow`: the files of the workflow, where a user stands."""

from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.show.say import say

app = typer.Typer(no_args_is_help=True)


@app.callback()
def workflow() -> None:
    """Put the workflow (Snakefile, workflows/, profiles/) where you stand; `vlm reproduce` or Snakemake runs it."""


@app.command()
def init(
    out: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to put the files.")] = Path(),
    replace: Annotated[bool, typer.Option(help="Replace also the files that you have edited.")] = False,
) -> None:
    r"""Put Snakefile, workflows/ and profiles/ into a folder; again to bring them up to date. Files you edited stay.

    \b
    vlm workflow init
    snakemake --profile profiles/local -n
    """
    from vlm.cli.workflow.place import place_workflow

    placed = place_workflow(out, replace=replace)
    say(f"{out.resolve()}: {len(placed.made)} files placed, {len(placed.same)} are up to date")
    for name in placed.kept:
        say(f"{name} stays as you have it; for the installed one: vlm workflow init --replace", fg="yellow")
