"""`vlm clean`: what takes up the disk, and what of it may go."""

from enum import StrEnum
from typing import Annotated

import typer

from vlm.cli.show.say import say, say_json

app = typer.Typer()


class Kind(StrEnum):
    """What may go; `vlm.cli.clean.KINDS` says what each is."""

    partial = "partial"
    lines = "index"  # a text has a method `index`
    checkpoints = "checkpoints"
    temporary = "temporary"


@app.command()
def clean(
    kinds: Annotated[list[Kind] | None, typer.Argument(help="Which kinds. Default: all.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove what is shown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    r"""Show how much disk $VLM_HOME uses and what may go: nothing is removed without --yes.

    partial: downloads and builds that were not finished. index: where the lines of training files begin.
    checkpoints: those of stages whose model is exported. temporary: what killed commands left. Weights, data, exported
    models, results, replies of judges and every file that is not ours stay; so does what a running command holds.

    \b
    vlm clean
    vlm clean checkpoints --yes
    """
    from vlm.cli.clean import KINDS, find_leftovers, remove
    from vlm.cli.show.leftovers import show_leftovers
    from vlm.core.home import home
    from vlm.core.progress import human_bytes

    found = find_leftovers(home(), [kind.value for kind in kinds or ()] or KINDS)
    removed, busy = remove(found.leftovers) if yes else (0, [])
    if as_json:
        rows = [{"kind": left.kind, "path": str(left.path), "bytes": left.size} for left in found.leftovers]
        say_json({"used": found.used, "leftovers": rows, "stays": [*found.stays, *busy], "removed_bytes": removed})
        return
    show_leftovers(found, home())
    for line in [*found.stays, *busy]:
        say(f"stays: {line}", fg="yellow")
    if yes:
        say(f"removed {human_bytes(removed)}")
    elif found.leftovers:
        say(f"{human_bytes(sum(left.size for left in found.leftovers))} may go; with --yes it is removed")
    else:
        say("nothing may go")
