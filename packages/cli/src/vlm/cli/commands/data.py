"""`vlm data`: organize, adopt, import, check, build and preview datasets."""

from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.commands import data_adopt, data_build, data_check, data_import
from vlm.cli.find import find_entries, refuse_published_folder
from vlm.cli.options import EntryChoice, grouped
from vlm.cli.show.say import say
from vlm.core.errors import ConfigError, DataError
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.core.fetch.installed import entry_state, is_built
from vlm.core.home import dataset, resolve
from vlm.core.progress import count_bar

app = typer.Typer(no_args_is_help=True, help="Organize, adopt, import, check, build and preview datasets.")
app.add_typer(data_build.app, name="build")
app.command()(data_check.check)
app.command()(data_check.ledger)
app.command()(data_import.show)
app.command("import")(data_import.import_)
app.command()(data_adopt.adopt)


@app.command()
@grouped
def organize(
    choice: EntryChoice,
    names: Annotated[list[str] | None, typer.Argument(help="Sets: easy-vqa, V2PE-Data, convllava-stage3, …")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every picture and video, not only headers.")] = False,
    max_lost: Annotated[float, typer.Option(min=0, max=1, help="Share of records that may be in the ledger.")] = 0.01,
    questions_per_record: Annotated[int, typer.Option(min=1, help="easy-vqa: turns in a record.")] = 4,
    seed: Annotated[int, typer.Option(help="Order of questions, choice and colors of charts.")] = 0,
) -> None:
    """Make the folder tree of a set from what was downloaded: unpack, link, convert, count.

    After an interruption, rerun the same command to continue. Everything that is missing is named at once; records that
    cannot be used are listed in ledger-NAME.jsonl of the set's folder.
    """
    from vlm.core.organize.organize_set import OrganizeOptions, can_organize, organize

    known = load_catalogue(choice.catalogue)
    if names and not (choice.group or choice.recipe or choice.benchmark):
        wanted = names
    else:
        picked = find_entries(known, names, choice)
        left_alone = ("absent", "partial") if choice.group else ()
        wanted = [e.name for e in picked if can_organize(e) and (is_built(e) or entry_state(e) not in left_alone)]
    if not wanted:
        raise ConfigError("nothing to organize", fix="name a set, or download one first: vlm download NAME")
    options = OrganizeOptions(seed, questions_per_record, verify, max_lost)
    failed: list[str] = []
    for name in wanted:
        try:
            outcome = organize(name, options, catalogue=known, shown=count_bar)
        except DataError as error:
            if len(wanted) == 1:
                raise
            failed.append(str(error))
            continue
        folder = find_entry(name, known).path
        say(f"{name}: {'already there' if outcome == 'present' else 'organized'} in {folder}")
    if failed:
        raise DataError(f"{len(failed)} of {len(wanted)} were not organized:\n" + "\n".join(failed))


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
    template: Annotated[
        str | None, typer.Option(help="Also learn the words that open the turns of this template: llava_v1.")
    ] = None,
) -> None:
    """Train a small byte-level BPE tokenizer on the text of records."""
    from vlm.core.synth.train_tokenizer import train_tokenizer

    extra = [resolve(path) for path in benchmark_text or []]
    paths = [resolve(path) for path in files]
    size = train_tokenizer(
        resolve(out), paths, vocab_size=vocab_size, extra=extra, haystack=haystack_text, template=template
    )
    say(f"wrote {resolve(out) / 'tokenizer.json'}: {size} tokens")


@app.command()
def preview(
    file: Annotated[Path, typer.Argument(help="JSONL records.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("preview.html"),
    root: Annotated[Path | None, typer.Option(help="Folder of the images; by default that of the file.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Records to show.")] = 8,
) -> None:
    """Write a few records as one self-contained page."""
    from vlm.core.synth.preview import preview as write_preview

    shown = write_preview(resolve(file), resolve(out), root=resolve(root) if root else None, count=count)
    say(f"wrote {resolve(out)} with {shown} records")


@app.command()
def mini(
    bench: Annotated[str, typer.Argument(help="A benchmark; `vlm list benchmarks` shows them.")],
    out: Annotated[Path | None, typer.Option(help="Folder; by default dataset/mini/BENCH, as for `--mini`.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    n: Annotated[int | None, typer.Option(min=1, help="Items per group; by default a usual size.")] = None,
) -> None:
    """Generate a tiny set in the official form of a benchmark, marked as such and apart from published data."""
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.mini import make_mini

    folder = resolve(out) if out else dataset() / "mini" / load_benchmark(bench).name
    refuse_published_folder(folder)
    say(f"wrote {make_mini(bench, folder, seed=seed, n=n)}")
