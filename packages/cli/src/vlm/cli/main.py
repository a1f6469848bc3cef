"""The `vlm` command: one lazily imported file per verb, so that `vlm --help` never pays for torch."""

import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from vlm.core.errors import UnknownName, VlmError

VERBS = {
    "doctor": "What this machine has, and which kernels will really run.",
    "list": "Recipes, benchmarks, datasets and weights, with their local state.",
    "download": "Fetch weights, datasets and benchmarks into the published folder trees.",
    "data": "Organise, check, build and preview datasets.",
    "weights": "Make, inspect and convert checkpoints.",
    "recipe": "Show, validate and verify training recipes.",
    "plan": "What a recipe costs, before anything is loaded.",
    "train": "Train one stage from a recipe; the same command resumes.",
    "launch": "Train on several GPUs or nodes: prints and runs the srun or torchrun line.",
    "eval": "Evaluate a model on benchmarks; the same command resumes.",
    "diff": "Which samples moved between two evaluations, and why.",
    "report": "One self-contained page from training runs and evaluations.",
    "reproduce": "A published system from weights to report through the DAG, or what it would take.",
    "chat": "Talk to a model about images and videos.",
}
"""Verb -> one line of help. `vlm.cli.commands.<verb>` holds an `app` (Typer); the file is imported when used."""


class LazyGroup(TyperGroup):
    """A group that lists its verbs from VERBS and imports a verb's module only when that verb runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Name and help of a verb, for listings and completion; nothing is imported."""
        return TyperCommand(cmd_name, help=VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that was typed, imported. Raises UnknownName with the nearest verbs."""
        name, *rest = args
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        if name not in VERBS:
            raise UnknownName("command", name, VERBS, fix="`vlm --help` lists the commands")
        command = typer.main.get_command(importlib.import_module(f"vlm.cli.commands.{name}").app)
        command.name, command.help = name, command.help or VERBS[name]
        return name, command, rest


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """Train and evaluate long-context, high-resolution vision-language models: V2PE, InternVL-Chat-V1-2, ConvLLaVA.

    Files live below $VLM_HOME (default: the working directory) in pretrained/, dataset/ and runs/.

    Exit codes: 0 done · 1 other error · 2 wrong name, flag or recipe · 3 data · 4 fetching · 5 checkpoint ·
    6 directory in use · 7 hardware · 130 Ctrl-C. Stopped on request with everything saved is 0.
    """


def main() -> None:
    """Run the command; errors a user can mend print without a traceback and set the documented exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # busy-waiting threads cost 3-4x on shared cores
    try:
        app()
    except VlmError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # Typer makes a silent 130 of Ctrl-C
            raise
        if "VLM_LAUNCHER" not in os.environ:  # `vlm train --processes` says it for its ranks
            typer.secho("stopped by Ctrl-C; the same command goes on from here", fg="yellow", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
