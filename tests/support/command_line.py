"""The real command line up to the point where a command would start to work."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from typer.main import get_command

from vlm.cli.main import VERBS, app


@cache
def verb(name: str) -> Any:
    """The command of a verb, imported once. Raises UnknownName for others."""
    group = get_command(app)
    return group.resolve_command(group.make_context("vlm", [name]), [name])[1]


def commands(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (path, command) of each command below one."""
    if hasattr(node, "commands"):
        for name, inner in node.commands.items():
            yield from commands(inner, (*path, name))
    else:
        yield " ".join(path), node


def all_commands() -> dict[str, Any]:
    """Every command of every verb by its words: `data build haystack`."""
    return dict(pair for name in VERBS for pair in commands(verb(name), (name,)))


def parse(words: list[str]) -> Any:
    """Parse `vlm WORDS`: the verb is found, every option and value is taken; raises what a user would see."""
    context = verb(words[0]).make_context(words[0], words[1:])
    while hasattr(context.command, "commands"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context


def known_options(words: list[str]) -> None:
    """Check the verb, sub-command and options of a `vlm` line that leaves out what it needs: `vlm eval --shard I/N`.

    Raises LookupError for an option that does not exist, and what a user would see for a verb or sub-command.
    """
    command, rest = verb(words[0]), words[1:]
    while rest and hasattr(command, "commands"):
        context = command.make_context(words[0], rest)
        _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    if unknown := [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options]:
        raise LookupError(f"{' '.join(words)}: no option {unknown[0]}")
