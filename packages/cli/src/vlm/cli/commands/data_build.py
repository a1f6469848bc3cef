"""`vlm data build`: long-context sets, counted with the rules of one model, and image haystacks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlm.cli.find import find_ruler
from vlm.cli.options import LongSetOptions, grouped
from vlm.cli.show.say import say
from vlm.core.home import dataset, resolve

app = typer.Typer(no_args_is_help=True, help="Build datasets that nobody publishes.")


@app.command()
@grouped
def long_mr(
    options: LongSetOptions,
    task: Annotated[list[str] | None, typer.Option(help="One of MM-NIAH's six; by default all. Repeatable.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Folder of .txt, .md, .rst or .py. Repeatable.")] = None,
    image_share: Annotated[float, typer.Option(min=0.0, max=0.95, help="Part of the tokens of images.")] = 0.5,
) -> None:
    """Build interleaved documents that hide text or image needles: retrieval, counting, reasoning (MM-NIAH records)."""
    from vlm.core.synth.long.budget import Budget
    from vlm.core.synth.long.long_mr import LONG, LongMrOptions, build_long_mr
    from vlm.core.synth.long.needles import TASKS

    o = options
    budgets = tuple(Budget.parse(length) for length in o.tokens)
    made = LongMrOptions(budgets, tuple(task or TASKS), o.train, o.val, o.seed, image_share, o.val_share)
    folder = dataset() / o.out
    sources = {"images": [resolve(path) for path in o.images or []], "texts": [resolve(path) for path in text or []]}
    outcome = build_long_mr(folder, made, find_ruler(o), **sources, workers=o.workers)
    say(f"{outcome}: {folder}")
    if o.val:
        long = LONG.get(budgets[0].name) if len(budgets) == 1 else None
        bench = f"MM-NIAH-long-{long}" if long else "MM-NIAH"
        say(f"evaluate: vlm eval {bench} --data {folder}")


@app.command()
@grouped
def long_vqa(
    files: Annotated[list[Path], typer.Argument(help="JSONL records with one image each, of one set.")],
    options: LongSetOptions,
    task: Annotated[
        str | None, typer.Option(help="Name of the set, as Long-VQA scores it (chartqa, docvqa, …).")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the images; by default that of each file.")] = None,
    allow_outside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder outside of the root that records may name. Repeatable."),
    ] = None,
    paste: Annotated[int, typer.Option(min=1, help="Pictures pasted into one page; 1: each one is an image.")] = 1,
    repeat_images: Annotated[bool, typer.Option(help="Distractors may come again when there are too few.")] = False,
) -> None:
    """Build questions of a visual question answering set, each about one picture among many of the same set."""
    from vlm.core.synth.long.budget import Budget
    from vlm.core.synth.long.long_vqa import LongVqaOptions, build_long_vqa

    o = options
    paths = [resolve(path) for path in files]
    budgets = tuple(Budget.parse(length) for length in o.tokens)
    name = task or paths[0].parent.name
    folder = dataset() / o.out
    outcome = build_long_vqa(
        folder,
        paths,
        LongVqaOptions(name, budgets, o.train, o.val, o.seed, paste, o.val_share, repeat_images),
        find_ruler(o),
        root=resolve(root) if root else None,
        outside=[resolve(path) for path in allow_outside or ()],
        images=[resolve(path) for path in o.images or []],
        workers=o.workers,
    )
    say(f"{outcome}: {folder}")


class Split(StrEnum):
    """The part of a set."""

    train = "train"
    test = "test"


class HaystackTask(StrEnum):
    """What a haystack hides: one digit, two and their order, or a number in a sentence."""

    hidden = "hidden"
    order = "order"
    text = "text"


@app.command()
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
        HaystackTask,
        typer.Option(help="hidden: one digit, which one? order: two, which comes first? text: a number in a sentence."),
    ] = HaystackTask.hidden,
) -> None:
    """Build long documents of sentences and pictures that hide a handwritten digit, two, or a number in words."""
    from vlm.core.synth.haystack import HaystackOptions, build_haystack

    options = HaystackOptions(tokens, tokens_per_image, count, split.value, seed, image_share, times, task.value)
    say(f"wrote {build_haystack(out, options, tokenizer=resolve(tokenizer) if tokenizer else None)}")
