"""`vlm use`: choose the model that is meant where none is named."""

from typing import Annotated

import typer

from vlm.cli.find import find_model
from vlm.cli.local_models import CHOICE, LocalModel, choose_model, chosen_model
from vlm.cli.show.say import say
from vlm.core.errors import ConfigError
from vlm.core.home import home

app = typer.Typer()


@app.command()
def use(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder, released name, stage or run. Without: show it.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Forget the choice.")] = False,
) -> None:
    """Choose the model of `vlm chat`, `vlm eval` and `vlm serve` where no --model is given, or show the choice.

    The choice is kept in $VLM_HOME. Without one the only model there is is meant; among several, each command asks for
    --model. Training never changes the choice.

    Example: vlm use InternVL2-2B
    """
    if clear and model:
        raise ConfigError("--clear with a model", expected="one of them")
    if clear:
        choose_model(None)
        say(f"nothing is chosen in {home()}", err=True)
        return
    if model is not None:
        choose_model(find_model(model))
    chosen = chosen_model()
    if chosen is None:
        raise ConfigError(f"nothing is chosen: no {CHOICE} in {home()}", fix="`vlm list models`, then `vlm use MODEL`")
    say(LocalModel(chosen).place)
