"""`vlm recipe`: show, validate and verify recipes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.cli.show.say import say, say_json
from vlm.cli.show.translation import show_translations

if TYPE_CHECKING:
    from vlm.train.verify.verify import VerifyReport

app = typer.Typer(no_args_is_help=True)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    published: Annotated[
        bool, typer.Option("--published", help="With the published values wherever ours differ.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show the resolved recipe: base merged, every key, every source.

    Example: vlm recipe show convllava-stage3
    """
    import yaml

    from vlm.train.recipe.recipe import load_recipe

    value = load_recipe(name, published=published).model_dump(mode="json")
    say(json.dumps(value, indent=1) if as_json else yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes or files; default: all shipped ones.")] = None,
) -> None:
    """Validate recipes: unknown keys, wrong types, numbers without a source; all faults at once.

    Example: vlm recipe check
    """
    from vlm.core.errors import ConfigError
    from vlm.train.recipe.recipe import load_recipe, recipe_names

    faults = []
    for name in names or recipe_names():
        try:
            load_recipe(name)
        except ConfigError as error:
            faults.append(str(error))
        else:
            say(f"ok  {name}")
    if faults:
        raise ConfigError("\n".join(faults))


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="A recipe, or a launch script (.sh) to compare with the nearest one.")],
    against: Annotated[
        Path | None, typer.Option("--against", "-a", help="Launch script (.sh), README (.md) or meta file (.json).")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column or row of the README's table.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Compare a recipe with what was published: contradictions, dead paths, variables and arguments without effect.

    Exit code 2 when a contradiction is in no `differences` entry of the recipe. Nothing is executed.

    Example: vlm recipe verify convllava-stage2 --against scripts/stage_2.sh
    """
    from vlm.core.errors import ConfigError
    from vlm.train.verify.verify import verify as verify_recipe
    from vlm.train.verify.verify import verify_script

    if against is not None:
        report = verify_recipe(name, against, label=label)
    elif name.endswith(".sh"):
        report = verify_script(Path(name))
    else:
        raise ConfigError(
            f"nothing to compare {name} with", fix=f"vlm recipe verify {name} --against FILE.sh|.md|.json"
        )
    if as_json:
        say_json(report.as_dict())
    else:
        show_report(report)
    if report.contradictions:
        raise typer.Exit(2)


@app.command("from-script")
def from_script(
    source: Annotated[
        str, typer.Argument(metavar="LINE|FILE", help="A launch script (.sh), a line in quotes, or a file of lines.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Translate published training scripts into `vlm launch`, and say what has no counterpart. Nothing is executed.

    Example: vlm recipe from-script "PARTITION=gpu GPUS=32 sh shell/internlm2_2b/baseline.sh"
    """
    from dataclasses import asdict

    from vlm.cli.published.lines import read_lines
    from vlm.cli.published.training import translate

    found = [translate(line) for line in read_lines(source)]
    if as_json:
        say_json([asdict(one) for one in found])
    else:
        show_translations(found)


def show_report(report: "VerifyReport") -> None:
    """Show the findings, those that need a decision first."""
    say(f"{report.recipe or 'no recipe is near'}  against  {report.source}", bold=True)
    for title, findings, color in (
        ("contradicts, and no difference says why", report.contradictions, "red"),
        ("differs on purpose (--published does as they did, where a key can)", report.noted, "yellow"),
    ):
        if findings:
            say(f"{title}:", fg=color)
        for f in findings:
            why = f"\n      {f.noted}" if f.noted else ""
            say(f"  {f.key}: ours {f.ours}, theirs {f.theirs} ({f.said}){why}")
    for title, lines in (
        ("paths that are not here", report.dead_paths),
        ("variables that are set and never used", report.unused),
        ("variables that a caller may set and that do not reach the program", report.unforwarded),
        ("arguments we do not know", report.unknown),
        ("parts that make no sense", report.broken),
        ("keys of ours that it does not set", report.only_ours),
    ):
        if lines:
            say(f"{title}:\n  " + "\n  ".join(lines))
    say(f"{len(report.agree)} keys agree: {', '.join(report.agree)}", fg="green")
