"""`vlm plan`: what a recipe costs, before anything is loaded."""

import json
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    processes: Annotated[int | None, typer.Option(help="GPUs or processes; default: as published, else 1.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: batch.samples=64.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Parameters (exact, no weights needed), states per process, steps, and what this machine lacks.

    Example: vlm plan convllava-stage3
    """
    from vlm.train.plan import make_plan
    from vlm.train.recipe import load_recipe

    resolved = load_recipe(recipe, overrides=tuple(set_ or ()))
    default = resolved.hardware.gpus if resolved.hardware else 1
    result = make_plan(resolved, processes=processes or default)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=1))
    else:
        from vlm.cli.show import show_plan

        show_plan(resolved, result)
