"""`vlm data check` and `vlm data ledger`: what a data set costs before training, and what a run did not use."""

import json
import os
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.cli.find import find_model
from vlm.cli.options import RULE_HELP
from vlm.cli.show.say import say_json

if TYPE_CHECKING:
    from vlm.core.check.check import CheckedFile
    from vlm.core.check.report import CheckReport
    from vlm.core.sample.measure import Rules
    from vlm.core.sample.records import Allowed
    from vlm.models.specs import ModelSpec
    from vlm.train.recipe.recipe import Recipe

SHOWN = 20


class AllowOption(StrEnum):
    """What the records of a file may hold on purpose."""

    quoted_placeholders = "quoted-placeholders"
    empty_answers = "empty-answers"


def check(
    what: Annotated[str, typer.Argument(help="A recipe (name or YAML), or a JSONL file of records.")],
    model: Annotated[
        str | None, typer.Option(help="Model whose rules count, by folder or name; default: the recipe's.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A shape without weights, instead of --model.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, where the model has none.")] = None,
    image_rule: Annotated[
        str | None, typer.Option(metavar="RULE", help=f"{RULE_HELP} Default: the recipe's or the model's.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where media paths start; default: the file's folder.")] = None,
    allow_outside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder outside of the root that records may name. Repeatable."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a sample at most.")] = None,
    strides: Annotated[
        list[float] | None, typer.Option(help="Positions per tile; repeat it. Default: the recipe's or the model's.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Replaces {run} in a recipe's paths.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of a recipe: max_length=4096.")
    ] = None,
    allow: Annotated[
        list[AllowOption] | None, typer.Option(help="What a file may hold on purpose; of a recipe: `data[].allow`.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode pictures and videos: slow, finds all that training would drop.")
    ] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Everything, each sample included.")] = None,
    png: Annotated[Path | None, typer.Option(help="The histogram of tokens.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
) -> None:
    """Count what every sample costs and would lose, from image headers. Exit 3 if a sample cannot be used.

    Example: vlm data check quickstart-v2pe-sft --json check.json --png tokens.png
    """
    from vlm.core.check.check import check as check_sources
    from vlm.core.check.report import collect
    from vlm.core.errors import DataError
    from vlm.core.home import resolve, write_atomic
    from vlm.core.progress import count_bar

    outside = tuple(resolve(folder) for folder in allow_outside or ())
    rules, sources = rules_and_sources(
        what, model, preset, tokenizer, root, outside, max_length, strides, run, set_ or (), allow or (), image_rule
    )
    began = time.perf_counter()
    with count_bar(what, "records") as progress:
        found = check_sources(rules, sources, workers, decode=decode, report=progress)
        report = collect(rules, sources, found)
    report.seconds = time.perf_counter() - began
    show_report(report)
    if json_out:
        write_atomic(resolve(json_out), json.dumps(report.as_dict(), ensure_ascii=False) + "\n")
    if png:
        draw_histogram(report, resolve(png))
    if report.errors:
        facts = report.as_dict(samples=False)
        raise DataError(
            f"{facts['lines'] - facts['usable']} of {facts['lines']} samples cannot be used",
            expected="placeholders and readable files in equal number, turns in order, something to learn",
            fix="repair or remove the lines above" + (f"; all are in {json_out}" if json_out else " (--json has all)"),
        )


def rules_and_sources(
    what: str,
    model: str | None,
    preset: str | None,
    tokenizer: Path | None,
    root: Path | None,
    outside: tuple[Path, ...],
    max_length: int | None,
    strides: list[float] | None,
    run: str | None,
    overrides: Sequence[str] = (),
    allow: Sequence["AllowOption"] = (),
    image_rule: str | None = None,
) -> "tuple[Rules, list[CheckedFile]]":
    """Return the counting rules and the sources of a recipe or of a file."""
    from vlm.core.check.check import CheckedFile
    from vlm.core.errors import ConfigError
    from vlm.core.home import lookup, resolve
    from vlm.core.media_root import MediaRoot
    from vlm.core.sample.encode import ImageTokenIds
    from vlm.core.sample.measure import Rules

    recipe: Recipe | None = None
    if what.endswith((".jsonl", ".json")):
        file = lookup(what)
        allowed: tuple[Allowed, ...] = tuple(choice.value for choice in allow)
        gate = MediaRoot(resolve(root) if root else file.parent, outside)
        sources = [CheckedFile(file.stem, file, gate, allow=allowed)]
    else:
        from vlm.train.recipe.recipe import load_recipe

        if allow:
            raise ConfigError("--allow with a recipe", expected="`allow` of an entry in the recipe")
        recipe = load_recipe(what, run=run, overrides=tuple(overrides))
        outside += tuple(resolve(folder) for folder in recipe.allow_outside)
        roots = [MediaRoot(resolve(root or d.root), outside) for d in recipe.data]
        sources = [
            CheckedFile(d.name, resolve(d.file), gate, d.repeat, d.max_tiles, d.allow)
            for d, gate in zip(recipe.data, roots, strict=True)
        ]
        max_length = max_length or recipe.max_length
    spec, folder = find_spec(recipe, model, preset, tokenizer)
    if recipe is not None:
        from vlm.train.recipe.recipe import training_spec

        spec = training_spec(recipe.model, spec)
    if image_rule is not None:
        spec = spec.with_image_rule(image_rule)
    if folder is None and tokenizer is None:
        raise ConfigError("no tokenizer to count with", expected="--model CHECKPOINT, or --preset with --tokenizer")
    wanted: tuple[float | None, ...] = tuple(strides or ())
    if not wanted and recipe is not None and recipe.strides is not None:
        wanted = recipe.stride_choices if recipe.strides == "random" else (recipe.strides,)
    if not wanted and recipe is None:
        wanted = (spec.strides,)
    mark = None if spec.image_tokens.start is None else 0  # only counted, so that its id does not matter
    rules = Rules(
        tokenizer=resolve(tokenizer) if tokenizer else folder or Path(),
        template=spec.template,
        image_rule=spec.image_rule,
        tokens_per_tile=spec.tokens_per_tile,
        image_tokens=ImageTokenIds(mark, 0, mark),
        system=spec.system,
        max_length=max_length,
        max_tiles=recipe.batch.max_tiles if recipe else None,
        strides=tuple(dict.fromkeys((None, *wanted))),
        max_positions=spec.language.max_positions,
    )
    return rules, sources


def find_spec(
    recipe: "Recipe | None", model: str | None, preset: str | None, tokenizer: Path | None
) -> "tuple[ModelSpec, Path | None]":
    """Return spec and folder of a model: --model, --preset, the recipe's start, or its preset where that is missing."""
    from vlm.core.errors import CheckpointError, ConfigError
    from vlm.core.home import pretrained
    from vlm.models.checkpoint.locate import find_checkpoint
    from vlm.models.specs import load_preset

    if model and preset:
        raise ConfigError("both --model and --preset", expected="one of them")
    if preset:
        return load_preset(preset), None
    if model:
        return read_checkpoint(find_model(model), tokenizer)
    if recipe is None:
        raise ConfigError("a file alone has no image rule", expected="--model CHECKPOINT or --preset NAME")
    try:
        find_checkpoint(recipe.model.start)
    except CheckpointError:
        folder = pretrained() / recipe.model.preset
        return load_preset(recipe.model.preset), folder if folder.is_dir() else None
    return read_checkpoint(find_checkpoint(recipe.model.start), tokenizer)


def read_checkpoint(folder: Path, tokenizer: Path | None) -> "tuple[ModelSpec, Path]":
    """Return spec and folder of a checkpoint whose tokenizer fits it. Our own layout is read without torch."""
    from vlm.core.config import parse
    from vlm.core.sample.tokenizer import load_tokenizer
    from vlm.models.checkpoint.agreement import check_agreement
    from vlm.models.checkpoint.locate import read_config
    from vlm.models.specs import ModelSpec

    config = read_config(folder)
    if "spec" in config:
        spec = parse(config["spec"], ModelSpec, where=f"{folder}/config.json: spec")
    else:
        from vlm.models.checkpoint.layout import read_layout

        spec = read_layout(folder).spec
    if tokenizer is None:
        check_agreement(spec, load_tokenizer(folder), folder)
    return spec, folder


def show_report(report: "CheckReport") -> None:
    """Print tables and a histogram."""
    from rich.table import Table

    from vlm.cli.show.screen import Screen, bold, styled
    from vlm.core.check.check import ERRORS, WARNINGS
    from vlm.core.sample.records import MEANT
    from vlm.core.text import printable

    console = Screen(stderr=True)
    facts = report.as_dict(samples=False)
    pace = f"{report.opened:,} headers read, {facts['lines'] / max(report.seconds, 1e-9):,.0f} samples/s"
    console.print(bold(f"{facts['usable']:,} of {facts['lines']:,} samples can be used") + f"; {pace}")
    table = Table("", "sum", "mean", "median", "90 %", "99 %", "max", title="per sample", title_justify="left")
    for name, values in facts["measures"].items():
        cells = (f"{values[k]:,.0f}" if k != "mean" else f"{values[k]:,.1f}" for k in values)
        table.add_row(name.replace("_", " "), *cells)
    console.print(table)
    if len(facts["sources"]) > 1:
        table = Table("source", "lines", "repeat", "share of samples", "share of tokens")
        for s in facts["sources"]:
            shares = (f"{s[k]:.1%}" for k in ("share_of_samples", "share_of_tokens"))
            table.add_row(s["name"], f"{s['lines']:,}", f"{s['repeat']:g}", *shares)
        console.print(table)
    edges, counts = facts["histogram"]["edges"], facts["histogram"]["samples"]
    for low, high, n in zip(edges, edges[1:], counts, strict=False):
        mark = " ← max_length" if report.rules.max_length and low <= report.rules.max_length < high else ""
        bar = "█" * round(40 * n / max(*counts, 1))
        console.print(f"{low:>9,} … {high - 1:>9,} tokens {n:>9,} {bar}{mark}")
    for name, n in facts["beyond_positions"].items():
        limit = f"{report.rules.max_positions:,}"
        console.print(styled(f"{n:,} samples reach beyond the {limit} positions of the model ({name})", "yellow"))
    table = Table("longest samples", "tokens", "tiles", "files", "labels kept")
    for w in facts["worst"][:5]:
        numbers = (f"{w[k]:,}" for k in ("tokens", "tiles", "files", "labels_kept"))
        table.add_row(printable(f"{w['source']}:{w['line']} {w['id']}"), *numbers)
    console.print(table)
    if facts["unread"]:
        table = Table("key", "records", "file", "", title="keys that nothing reads", title_justify="left")
        for name, keys in facts["unread"].items():
            for key, n in keys.items():
                table.add_row(printable(key, 60), f"{n:,}", printable(name), MEANT.get(key, ""))
        console.print(table)
    if facts["faults"]:
        table = Table("fault", "samples", "", "for example", title="faults", title_justify="left")
        for kind, n in facts["faults"].items():
            first = next(f for f in report.faults if f.kind == kind)
            color = "red" if kind in ERRORS else "yellow"
            where = f"{first.source}:{first.line}: {first.message}"
            table.add_row(styled(kind, color), f"{n:,}", {**ERRORS, **WARNINGS}[kind], printable(where))
        console.print(table)
    for fault in report.errors[:SHOWN]:
        line = f"  {fault.source}:{fault.line} ({fault.id}): {fault.kind}: {fault.message}"
        console.print(printable(line, 1000))
    if len(report.errors) > SHOWN:
        console.print(f"  … and {len(report.errors) - SHOWN:,} more")


def draw_histogram(report: "CheckReport", path: Path) -> None:
    """Write the histogram of tokens as a PNG."""
    import io

    from matplotlib.figure import Figure

    from vlm.core.home import write_atomic

    data = report.as_dict(samples=False)["histogram"]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(data["samples"], data["edges"], fill=True)
    axes.set(
        xscale="log", xlabel="tokens of a sample", ylabel="samples", title=", ".join(s.name for s in report.sources)
    )
    if report.rules.max_length:
        axes.axvline(report.rules.max_length, color="C3", linestyle="--", label="max_length")
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomic(path, content.getvalue())


def ledger(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or one stage of it: RUN/train/RECIPE.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, with every entry.")] = False,
) -> None:
    """List samples that a training run did not use as they are: how many, why, and whether the counts close.

    Example: vlm data ledger runs/quickstart
    """
    from vlm.core.errors import DataError
    from vlm.core.home import resolve
    from vlm.train.run.metrics import read_account

    folder = resolve(folder)
    stages = [folder] if (folder / "recipe.json").exists() else sorted(p.parent for p in folder.glob("**/recipe.json"))
    if not stages:
        raise DataError(f"no training run in {folder}", expected="recipe.json in it or below", fix="name RUN")
    accounts = [(stage, read_account(stage)) for stage in stages]
    if as_json:
        listed: list[dict[str, Any]] = []
        for stage, a in accounts:
            reasons = [{"what": k[0], "stage": k[1], "reason": k[2], "samples": n} for k, n in a.reasons.items()]
            listed.append(
                {"folder": str(stage), "recipe": a.recipe, "steps": a.steps, "counts": a.counts, "closes": not a.open}
                | {"open": a.open, "reasons": reasons, "entries": a.entries}
            )
        say_json(listed)
    else:
        from rich.table import Table

        from vlm.cli.show.screen import Screen, bold, styled

        console = Screen(stderr=True)
        for _, a in accounts:
            counts = ", ".join(f"{what} {n:,}" for what, n in a.counts.items())
            closes = styled("does not close: " + "; ".join(a.open), "red") if a.open else styled("closes", "green")
            console.print(bold(str(a.recipe)) + f" after {a.steps:,} steps: {counts}: " + closes)
            if a.reasons:
                table = Table("what", "stage", "reason", "samples")
                for key, n in a.reasons.items():
                    table.add_row(*key, f"{n:,}")
                console.print(table)
    if any(a.open for _, a in accounts):
        raise DataError("the counts of a run do not close", expected="in = used + dropped + truncated + replaced")
