"""The command-line reference: every command, argument and option, read from Typer."""

import importlib
from enum import Enum
from typing import Any, get_args

import typer
from markdown_pieces import cell, code, escape, table

from vlm.cli.main import VERBS

COMPLETION = {"install_completion", "show_completion"}
"""Options that Typer adds to every verb; the guide names them once."""


def pages() -> dict[str, str]:
    """Return one page for each verb of `vlm`, in the order of `vlm --help`, and an overview before them."""
    rows = [(f"[`vlm {verb}`]({verb}.md)", escape(text)) for verb, text in VERBS.items()]
    overview = "# Commands\n\nExit codes and what survives a kill: [the command line](../../cli.md).\n\n"
    made = {"reference/commands/index.md": overview + table(("command", "what it does"), rows)}
    for verb, text in VERBS.items():
        group = typer.main.get_command(importlib.import_module(f"vlm.cli.commands.{verb}").app)
        made[f"reference/commands/{verb}.md"] = f"# vlm {verb}\n\n{verb_page(verb, group, text)}"
    return made


def verb_page(verb: str, command: Any, text: str) -> str:
    """Return the sections of a verb: of itself, or of each of its subcommands."""
    below = getattr(command, "commands", None)
    if not below:
        return section(f"vlm {verb}", command)
    parts = [f"{escape(text)}\n"]
    for name in sorted(below, key=lambda name: name != "evaluate"):  # `vlm eval` itself comes before `vlm eval score`
        line = f"vlm {verb}" if name == "evaluate" else f"vlm {verb} {name}"
        parts.append(f"## {line}\n\n{section(line, below[name])}")
    return "\n".join(parts)


def section(line: str, command: Any) -> str:
    """Return usage, help, arguments and options of one command.

    Raises:
        ValueError: an argument or option has no help.
    """
    shown = [p for p in command.params if not p.hidden and p.name not in COMPLETION]
    if bare := [p.name for p in shown if not p.help]:
        raise ValueError(f"{line}: no help for {', '.join(bare)}; write `help=` there")
    arguments = [p for p in shown if p.param_type_name == "argument"]
    text = [f"```\n{' '.join([line, '[OPTIONS]', *map(metavar, arguments)])}\n```\n", help_text(command.help or "")]
    if arguments:
        text.append(table(("argument", "meaning"), ((code(metavar(p)), help_of(p)) for p in arguments)))
    panels: dict[str, list[Any]] = {}
    for option in shown:
        if option not in arguments:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(option)
    for title, options in panels.items():
        text += [f"**{title}**\n", table(("option", "value", "meaning"), map(option_row, options))]
    return "\n".join(text)


def help_text(text: str) -> str:
    """Return the help of a command as Markdown: paragraphs, and command lines as a code block."""
    blocks = []
    for block in text.split("\n\n"):
        lines = [line.strip() for line in block.replace("\b", "").strip().splitlines() if line.strip()]
        if lines and lines[0].startswith(("vlm ", "Example: vlm ")):
            body = "\n".join(line.removeprefix("Example: ") for line in lines)
            blocks.append(f"```sh\n{body}\n```")
        elif lines:
            blocks.append(escape(" ".join(lines)))
    return "\n\n".join(blocks) + "\n"


def option_row(option: Any) -> tuple[str, str, str]:
    """Return names, kind of value, and meaning of one option."""
    names = ", ".join(code(name) for name in (*option.opts, *option.secondary_opts))
    return names, "" if option.is_flag else code(metavar(option)), help_of(option)


def metavar(parameter: Any) -> str:
    """Return the word for the value of an argument or option: its own, its choices, or its type."""
    annotation = parameter.type_descriptor.annotation
    kind = (get_args(annotation) or (annotation,))[0]
    if parameter.metavar:
        word = str(parameter.metavar)
    elif parameter.param_type_name == "argument":
        word = str(parameter.name).upper()
    elif isinstance(kind, type) and issubclass(kind, Enum):
        word = "|".join(str(member.value) for member in kind)
    else:
        word = str(kind.__name__).upper()
    many = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    return f"{word}..." if many and not word.endswith("...") else word


def help_of(parameter: Any) -> str:
    """Return the help of an argument or option, with its default and whether it must be given."""
    text = escape(cell(parameter.help))
    if parameter.required:
        return f"{text} **Required.**"
    default = parameter.default
    if default in (None, False, (), [], "") or callable(default) or "default" in parameter.help.lower():
        return text
    return f"{text} Default: {code(getattr(default, 'value', default))}."
