"""The `vlm` command: one lazily imported file per verb, so that `vlm --help` never pays for torch."""

import importlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from vlm.cli.show.say import say
from vlm.core.errors import ConfigError, HardwareError, UnknownName, VlmError, of_system
from vlm.core.extras import of_import
from vlm.core.home import home, lookup
from vlm.core.text import printable, printable_lines

VERBS = {
    "doctor": "Show what this machine has, and which kernels will run.",
    "list": "List recipes, benchmarks, datasets and weights, with their local state.",
    "download": "Fetch weights, datasets and benchmarks into their folders below the home.",
    "data": "Organize, import, check, build and preview datasets.",
    "weights": "Make, inspect and convert checkpoints.",
    "push": "Share a model on the hub, with a model card.",
    "use": "Choose the model that is meant where none is named.",
    "recipe": "Show, validate and verify training recipes.",
    "plan": "Predict what a recipe costs, before anything is loaded.",
    "train": "Train one stage from a recipe; rerun to resume.",
    "watch": "Show live what trainings and evaluations do, from their files alone.",
    "launch": "Train on several GPUs or nodes: print and run the srun or torchrun line.",
    "eval": "Evaluate a model on benchmarks; rerun to resume.",
    "infer": "Write a model's replies to pictures or prompts; rerun to resume.",
    "diff": "Show which samples moved between two evaluations, and why.",
    "report": "Write one self-contained page from training runs and evaluations.",
    "view": "Show trainings as they run, evaluations, and every sample of them, on a page.",
    "reproduce": "Run a published system from weights to report through the DAG, or show what it takes.",
    "workflow": "Put the files of the workflow where you stand.",
    "clean": "Show what takes up the disk, and remove what may go.",
    "chat": "Talk to a model about images and videos.",
    "cite": "Show the papers of the published systems as BibTeX.",
    "serve": "Serve models to OpenAI clients and on a page, with the positions that they were trained with.",
}
"""Verb -> one line of help. `vlm.cli.commands.<verb>` holds an `app` (Typer); the file is imported when used."""


class LazyGroup(TyperGroup):
    """A group that lists its verbs from VERBS and imports a verb's module when that verb runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs in the order of VERBS."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return name and help of a verb, for listings and completion; import nothing."""
        return TyperCommand(cmd_name, help=VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the verb that was typed. Raises UnknownName with the nearest verbs."""
        name, *rest = args
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        if name not in VERBS:
            raise UnknownName("command", name, VERBS, fix="`vlm --help` lists the commands")
        from vlm.cli.complete import complete

        own = importlib.import_module(f"vlm.cli.commands.{name}").app
        complete(own, name)
        command = typer.main.get_command(own)
        command.name, command.help = name, command.help or VERBS[name]
        plain_help(command)
        from_here(command)
        return name, command, rest


def plain_help(command: Any) -> None:
    """Let a verb's help be shown as it is written, and leave out what only `vlm` itself has.

    Typer would read `[serve]` as a style of Rich, and adds options that install the completion to each verb.
    """
    command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    for one in (command, *command.params):
        one.help = escape(one.help) if getattr(one, "help", None) else None
    for inner in getattr(command, "commands", {}).values():
        plain_help(inner)


WRITTEN = ("out", "json_out", "png", "run")
"""Names of the parameters that say where something is written."""


def from_here(command: Any) -> None:
    """Let relative paths that are typed for a command, or below it, mean the working directory.

    What is to be read and is not there is looked for below the home. Defaults stay below the home, and so do the paths
    in a recipe.
    """
    for inner in getattr(command, "commands", {}).values():
        from_here(inner)
    invoke = command.invoke

    def invoke_from_here(ctx: Any) -> Any:
        if home() != Path.cwd():
            for param in command.params:
                if getattr(ctx.get_parameter_source(param.name), "name", "") != "DEFAULT":
                    ctx.params[param.name] = typed(ctx.params[param.name], written=param.name in WRITTEN)
        return invoke(ctx)

    command.invoke = invoke_from_here


def typed(value: Any, *, written: bool) -> Any:
    """Return a path that was typed, or each of several, as an absolute one; other values as they are."""
    if isinstance(value, list | tuple):
        return type(value)(typed(one, written=written) for one in value)
    if not isinstance(value, Path):
        return value
    return value.expanduser().absolute() if written else lookup(value)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # its frames would show values, keys of servers too
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The Typer application of `vlm`.

>>> app(["list", "recipes"])  # doctest: +SKIP
"""


def show_version(asked: bool) -> None:
    """Print the versions and end, if they were asked for."""
    if asked:
        from vlm.cli.show.version import version_lines

        say("\n".join(version_lines()))
        raise typer.Exit


VERSION_HELP = "Versions of vlm, its packages and libraries, and how they were installed."


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help=VERSION_HELP)
    ] = False,
) -> None:
    """Train and evaluate long-context, high-resolution vision-language models: V2PE, InternVL-Chat-V1-2, ConvLLaVA.

    Files live below $VLM_HOME (default: the working directory) in pretrained/, dataset/ and runs/. Relative paths that
    you type mean the working directory.

    Exit codes: 0 done · 1 other error · 2 wrong name, flag or recipe · 3 data · 4 fetching · 5 checkpoint ·
    6 directory in use · 7 hardware · 130 Ctrl-C. Stopped on request with everything saved is 0.
    """


def main() -> None:
    """Run the command. Errors that a user can fix print without a traceback and set the documented exit code.

    A full disk, a folder without permission and the like are such errors, wherever they happen. Anything else is our
    fault: its traceback is shown, after a line that says so.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # busy-waiting threads cost 3-4x on shared cores
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal's encoding lacks is escaped, and ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        check_threads()
        app()
    except VlmError as error:
        end(error)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # Typer makes a silent 130 of Ctrl-C
            raise
        if "VLM_LAUNCHER" not in os.environ:  # `vlm train --processes` prints it for its ranks
            say("stopped by Ctrl-C; rerun the same command to continue", fg="yellow", err=True)
        sys.exit(130)
    except OSError as error:
        if (known := of_system(error)) is None:
            blame_us()
            raise
        end(known)
    except ModuleNotFoundError as error:
        if (lacking := of_import(error)) is None:
            blame_us()
            raise
        end(lacking)
    except MemoryError:
        found = "the memory of this machine is used up"
        end(
            HardwareError(found, fix="ask for less at a time (--batch-size, --limit, workers), or use a larger machine")
        )
    except Exception:
        blame_us()
        raise


def check_threads() -> None:
    """Raise ConfigError for numbers of threads in the environment that libraries would read as "all" or worse."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        given = os.environ.get(name, "1")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in given.split(",")):
            raise ConfigError(
                f"{name}={printable(given)}",
                expected="a number of threads above 0",
                fix=f"export {name}={os.cpu_count()}",
            )


def end(error: VlmError) -> NoReturn:
    """Print an error that a user can fix, and end with its exit code."""
    say(f"error: {printable_lines(str(error))}", fg="red", err=True)
    sys.exit(error.exit_code)


def blame_us() -> None:
    """Say that what follows is a fault of this program."""
    line = "this is a fault of vlm, not of yours; what was saved stays. Please report it with the lines below:"
    say(line, fg="red", err=True)


if __name__ == "__main__":
    main()
