"""`vlm recipe`: show and validate recipes."""

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """The resolved recipe: base merged, every key, every source.

    Example: vlm recipe show convllava-stage3
    """
    import yaml

    from vlm.train.recipe import load_recipe

    value = load_recipe(name).model_dump(mode="json")
    typer.echo(json.dumps(value, indent=1) if as_json else yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes or files; default: all shipped ones.")] = None,
) -> None:
    """Validate recipes: unknown keys, wrong types, numbers without a source; all faults at once.

    Example: vlm recipe check
    """
    from vlm.core.errors import ConfigError
    from vlm.train.recipe import load_recipe, recipe_names

    faults = []
    for name in names or recipe_names():
        try:
            load_recipe(name)
        except ConfigError as error:
            faults.append(str(error))
        else:
            typer.echo(f"ok  {name}")
    if faults:
        raise ConfigError("\n".join(faults))
