"""`vlm infer`: replies of a model to pictures or to a file of prompts; rerun the same command to resume."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.cli.backends import check_backend, native, server
from vlm.cli.find import find_model
from vlm.cli.options import MODEL_HELP, NATIVE, SERVER, PlacementOptions, Replace, ServerOptions, grouped
from vlm.cli.own_file import questions_of, rows_settings
from vlm.cli.show.positions import positions_line
from vlm.cli.show.say import say
from vlm.cli.strides import STRIDE_HELP, per_tile, read_stride
from vlm.core.errors import ConfigError

if TYPE_CHECKING:
    from vlm.eval.backends.base import Drawing

app = typer.Typer()


@app.command()
@grouped
def infer(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Pictures, folders of them, globs, or files of prompts (.jsonl .json .csv .tsv .parquet, datasets).",
        ),
    ],
    placement: PlacementOptions,
    endpoint: ServerOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of replies to write, JSON lines.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"{MODEL_HELP} With a server: the model's name there.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What is asked of each picture, or in rows without one.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD=COLUMN,...", help="What holds image, video, question, options, id. Default: by name."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy; above: tokens are drawn.")] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Draw from the likeliest tokens of this mass.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw. Default: 0.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Asked at once; does not change replies.")] = 8,
    retry_failed: Annotated[bool, typer.Option(help="Ask again where the outcome was oom or error.")] = False,
    replace: Replace = False,
    allow_outside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder outside of the file's that rows may name. Repeatable."),
    ] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures that are named by address.")] = False,
    backend: Annotated[str, typer.Option(help="native: in this process; openai: a server.")] = "native",
    stride: Annotated[
        str | None, typer.Option(help=f"{STRIDE_HELP}. Default: the checkpoint's.", rich_help_panel=NATIVE)
    ] = None,
    positions: Annotated[str, typer.Option(help="exact, float32 or plain-prefill.", rich_help_panel=NATIVE)] = "exact",
    tiles: Annotated[
        int | None, typer.Option(min=1, help="Tiles per image. Default: the checkpoint's.", rich_help_panel=NATIVE)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Refuse prompts of more tokens.", rich_help_panel=NATIVE)
    ] = None,
    attention: Annotated[
        str, typer.Option(help="auto, sdpa, varlen or flash_attention_2.", rich_help_panel=NATIVE)
    ] = "auto",
    family: Annotated[
        str, typer.Option(help="Ask as this family is asked, e.g. internvl2.", rich_help_panel=SERVER)
    ] = "",
) -> None:
    """Write a model's replies to pictures or prompts, in their order. Rerun the same command after a kill.

    Each line has id, outcome (ok, length, refused, error, oom, unanswered), reply, and why there is none.

    \b
    vlm infer -m V2PE-32K photos/ --prompt "Describe the picture." -o captions.jsonl
    vlm infer -m V2PE-32K prompts.jsonl -o replies.jsonl --temperature 0.7 --seed 1
    vlm infer prompts.csv -o replies.jsonl --backend openai --base-url http://localhost:8000/v1
    """
    from vlm.cli.show.evaluation import progress_bar
    from vlm.core.config import parse
    from vlm.eval.backends.base import Stopped
    from vlm.eval.run.infer import TABLE, run_infer
    from vlm.eval.run.runner import Options

    drawing = _drawing(temperature, top_p, seed)
    native_only = {"stride": stride, "positions": positions, "tiles": tiles, "max_length": max_length}
    check_backend(backend, endpoint.base_url, {**native_only, **asdict(placement), "attention": attention})
    chosen = read_stride(stride)
    options = parse({"stride": None, "positions": positions, "tiles": tiles}, Options, where="vlm infer")
    found = rows_settings(prompt, allow_outside, allow_urls)
    items = questions_of(inputs, prompt, columns, found, out)[:limit]
    if backend == "native":
        path = find_model(model)
        asked = native(path, placement, attention=attention, max_length=max_length, drawing=drawing)
        if asked.spec is not None:
            value = per_tile(chosen, asked.spec.tokens_per_tile)
            say(positions_line(asked.spec, value), err=True)
            options = parse(
                {**options.model_dump(), "stride": asked.stride if value == "model" else value},
                Options,
                where="vlm infer",
            )
    else:
        asked = server(endpoint, model, family=family, drawing=drawing)
    model_backend = asked.backend(TABLE, options)
    try:
        with progress_bar(f"{asked.name} · {len(items):,} questions") as progress:
            counts = run_infer(
                items,
                model_backend,
                out,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size if backend == "native" else endpoint.concurrency,
                retry_failed=retry_failed,
                replace=replace,
                progress=progress,
            )
    except Stopped as stop:
        raise stop.error from stop
    finally:
        if note := getattr(model_backend, "note", ""):
            say(f"{asked.name}: {note}", err=True)
    said = ", ".join(f"{kind} {n:,}" for kind, n in sorted(counts.items()))
    say(f"{counts.total():,} of {len(items):,} questions: {said}")
    say(f"replies: {out}")


def _drawing(temperature: float, top_p: float | None, seed: int | None) -> "Drawing | None":
    """Return how tokens are drawn; None for the likeliest. Raises ConfigError for settings without an effect."""
    from vlm.eval.backends.base import Drawing

    idle = [name for name, value in (("--top-p", top_p), ("--seed", seed)) if value is not None]
    if temperature == 0 and idle:
        raise ConfigError(f"{' and '.join(idle)} without --temperature", expected="a temperature above 0")
    return Drawing(temperature, top_p, seed or 0) if temperature else None
