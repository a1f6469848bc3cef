"""`vlm data`: organize, build and preview datasets."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.commands import data_check
from vlm.cli.commands.choose import chosen
from vlm.cli.commands.long_context import long_mr, long_vqa
from vlm.core.errors import ConfigError, DataError
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.core.fetch.installed import entry_state, is_built
from vlm.core.home import dataset, resolve

app = typer.Typer(no_args_is_help=True, help="Organise, build and preview datasets.")
build = typer.Typer(no_args_is_help=True, help="Build datasets that nobody publishes.")
app.add_typer(build, name="build")
app.command()(data_check.check)
app.command()(data_check.ledger)
build.command("long-mr")(long_mr)
build.command("long-vqa")(long_vqa)


class Split(StrEnum):
    """Training or test."""

    train = "train"
    test = "test"


@app.command()
def organize(
    names: Annotated[list[str] | None, typer.Argument(help="Sets: easy-vqa, V2PE-Data, convllava-stage3, …")] = None,
    group: Annotated[str | None, typer.Option("--all", help="Every set of a group that is downloaded.")] = None,
    recipe: Annotated[str | None, typer.Option(help="The data of a recipe.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="The data of a benchmark, or of `all`.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every picture and video, not only headers.")] = False,
    max_lost: Annotated[float, typer.Option(min=0, max=1, help="Share of records that may be in the ledger.")] = 0.01,
    questions_per_record: Annotated[int, typer.Option(min=1, help="easy-vqa: turns in a record.")] = 4,
    seed: Annotated[int, typer.Option(help="Order of questions, choice and colours of charts.")] = 0,
    catalogue: Annotated[
        Path | None, typer.Option(help="A catalogue of your own beside the shipped one (YAML).")
    ] = None,
) -> None:
    """Make the published folder tree of a set from what was downloaded: unpack, link, convert, count.

    Interrupted at any moment, the same command goes on. What is missing is all named at once; what cannot be used is in
    ledger-NAME.jsonl of the set's folder.
    """
    from vlm.core.organize.organize import OrganizeOptions, can_organize, organize

    known = load_catalogue(catalogue)
    if names and not (group or recipe or benchmark):
        wanted = names
    else:
        picked = chosen(known, names=names, group=group, recipe=recipe, benchmark=benchmark)
        left_alone = ("absent", "partial") if group else ()
        wanted = [e.name for e in picked if can_organize(e) and (is_built(e) or entry_state(e) not in left_alone)]
    if not wanted:
        raise ConfigError("nothing to organise", fix="name a set, or download one first: vlm download NAME")
    options = OrganizeOptions(seed, questions_per_record, verify, max_lost)
    failed: list[str] = []
    for name in wanted:
        try:
            outcome = organize(name, options, catalogue=known)
        except DataError as error:
            if len(wanted) == 1:
                raise
            failed.append(str(error))
            continue
        folder = find_entry(name, known).path
        typer.echo(f"{name}: {'already there' if outcome == 'present' else 'organised'} in {folder}")
    if failed:
        raise DataError(f"{len(failed)} of {len(wanted)} were not organised:\n" + "\n".join(failed))


class Task(StrEnum):
    """What a haystack hides."""

    hidden = "hidden"
    order = "order"


@build.command()
def haystack(
    out: Annotated[str, typer.Option(help="Folder below dataset/.")],
    tokens: Annotated[int, typer.Option(min=1, help="Length of the human turn in tokens, images included.")],
    tokens_per_image: Annotated[int, typer.Option(min=1, help="Visual tokens of one image.")],
    count: Annotated[int, typer.Option(min=1, help="How many documents.")],
    split: Annotated[Split, typer.Option(help="train: conversations; test: an MM-NIAH benchmark.")] = Split.train,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer.json; without it words are counted.")
    ] = None,
    image_share: Annotated[float, typer.Option(min=0.0, max=0.95, help="Part of the tokens that images take.")] = 0.5,
    times: Annotated[str, typer.Option(help="Length as a multiple of training, noted in the records.")] = "1x",
    task: Annotated[
        Task, typer.Option(help="hidden: one digit, which one? order: two, which comes first?")
    ] = Task.hidden,
) -> None:
    """Long documents of sentences and pictures that hide a handwritten digit, or two: which one?"""
    from vlm.core.synth.haystack import HaystackOptions, build_haystack

    options = HaystackOptions(tokens, tokens_per_image, count, split.value, seed, image_share, times, task.value)
    typer.echo(f"wrote {build_haystack(out, options, tokenizer=resolve(tokenizer) if tokenizer else None)}")


@app.command()
def tokenizer(
    files: Annotated[list[Path], typer.Argument(help="JSONL records whose turns are the text.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json and its two companions.")],
    vocab_size: Annotated[
        int, typer.Option(help="Tokens at most, the 256 bytes and 8 special tokens included.")
    ] = 1024,
    benchmark_text: Annotated[
        list[Path] | None, typer.Option(help="More text: strings of JSON, JSONL or text files.")
    ] = None,
    haystack_text: Annotated[bool, typer.Option(help="Also learn the sentences of image haystacks.")] = True,
) -> None:
    """Train a small byte-level BPE tokenizer on the text of records."""
    from vlm.core.synth.train_tokenizer import train_tokenizer

    extra = [resolve(path) for path in benchmark_text or []]
    paths = [resolve(path) for path in files]
    size = train_tokenizer(resolve(out), paths, vocab_size=vocab_size, extra=extra, haystack=haystack_text)
    typer.echo(f"wrote {resolve(out) / 'tokenizer.json'}: {size} tokens")


@app.command()
def preview(
    file: Annotated[Path, typer.Argument(help="JSONL records.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("preview.html"),
    root: Annotated[Path | None, typer.Option(help="Folder of the images; by default that of the file.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Records to show.")] = 8,
) -> None:
    """A few records as one self-contained page."""
    from vlm.core.synth.preview import preview as write_preview

    shown = write_preview(resolve(file), resolve(out), root=resolve(root) if root else None, count=count)
    typer.echo(f"wrote {resolve(out)} with {shown} records")


@app.command()
def mini(
    bench: Annotated[str, typer.Argument(help="A benchmark; `vlm list benchmarks` shows them.")],
    out: Annotated[Path | None, typer.Option(help="Folder; by default where the benchmark expects its data.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    n: Annotated[int | None, typer.Option(min=1, help="Items per group; by default a usual size.")] = None,
) -> None:
    """A tiny generated set in the official form of a benchmark."""
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.mini import make_mini

    folder = resolve(out) if out else dataset() / load_benchmark(bench).folder
    typer.echo(f"wrote {make_mini(bench, folder, seed=seed, n=n)}")
