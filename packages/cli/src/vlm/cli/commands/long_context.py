"""`vlm data build long-mr | long-vqa`: long-context sets, counted with the rules of one model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.core.home import dataset, resolve

if TYPE_CHECKING:
    from vlm.core.synth.long.ruler import Ruler

Out = Annotated[str, typer.Option(help="Folder; a relative one lies below dataset/.")]
Model = Annotated[str, typer.Option(help="Checkpoint, or a preset with --tokenizer: its rules count the tokens.")]
Tokens = Annotated[list[str], typer.Option(help="Length: 4096, 16K, 1M or a range 16K-32K (K is 1024). Repeatable.")]
TokenizerFolder = Annotated[Path | None, typer.Option(help="Folder of the tokenizer; by default the model's own.")]
MaxTiles = Annotated[int | None, typer.Option(min=1, help="Tiles of an image at most; by default the model's.")]
Train = Annotated[int, typer.Option(min=0, help="Training records of each task or length.")]
Val = Annotated[int, typer.Option(min=0, help="Validation records of each task or length.")]
ValShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Part of the sources that are for validation.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same bytes.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")]
Images = Annotated[list[Path] | None, typer.Option(help="Folder of source images. Repeatable.")]


def long_mr(
    out: Out,
    model: Model,
    tokens: Tokens,
    task: Annotated[list[str] | None, typer.Option(help="One of MM-NIAH's six; by default all. Repeatable.")] = None,
    train: Train = 100,
    val: Val = 20,
    images: Images = None,
    text: Annotated[list[Path] | None, typer.Option(help="Folder of .txt, .md, .rst or .py. Repeatable.")] = None,
    image_share: Annotated[float, typer.Option(min=0.0, max=0.95, help="Part of the tokens of images.")] = 0.5,
    tokenizer: TokenizerFolder = None,
    max_tiles: MaxTiles = None,
    val_share: ValShare = 0.25,
    seed: Seed = 0,
    workers: Workers = 1,
) -> None:
    """Interleaved documents that hide text or image needles: retrieval, counting, reasoning (MM-NIAH's records)."""
    from vlm.core.synth.long.budget import Budget
    from vlm.core.synth.long.long_mr import LONG, LongMrOptions, build_long_mr
    from vlm.core.synth.long.needles import TASKS

    budgets = tuple(Budget.parse(length) for length in tokens)
    options = LongMrOptions(budgets, tuple(task or TASKS), train, val, seed, image_share, val_share)
    folder = dataset() / out
    ruler = find_ruler(model, tokenizer, max_tiles)
    sources = {"images": [resolve(path) for path in images or []], "texts": [resolve(path) for path in text or []]}
    outcome = build_long_mr(folder, options, ruler, **sources, workers=workers)
    typer.echo(f"{outcome}: {folder}")
    if val:
        long = LONG.get(budgets[0].name) if len(budgets) == 1 else None
        bench = f"MM-NIAH-long-{long}" if long else "MM-NIAH"
        typer.echo(f"evaluate: vlm eval {bench} --data {folder}")


def long_vqa(
    files: Annotated[list[Path], typer.Argument(help="JSONL records with one image each, of one set.")],
    out: Out,
    model: Model,
    tokens: Tokens,
    task: Annotated[
        str | None, typer.Option(help="Name of the set, as Long-VQA scores it (chartqa, docvqa, …).")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the images; by default that of each file.")] = None,
    train: Train = 100,
    val: Val = 20,
    paste: Annotated[int, typer.Option(min=1, help="Pictures pasted into one page; 1: each one is an image.")] = 1,
    images: Images = None,
    repeat_images: Annotated[bool, typer.Option(help="Distractors may come again when there are too few.")] = False,
    tokenizer: TokenizerFolder = None,
    max_tiles: MaxTiles = None,
    val_share: ValShare = 0.25,
    seed: Seed = 0,
    workers: Workers = 1,
) -> None:
    """Questions of a visual question answering set, each about one picture among many of the same set."""
    from vlm.core.synth.long.budget import Budget
    from vlm.core.synth.long.long_vqa import LongVqaOptions, build_long_vqa

    paths = [resolve(path) for path in files]
    budgets = tuple(Budget.parse(length) for length in tokens)
    name = task or paths[0].parent.name
    options = LongVqaOptions(name, budgets, train, val, seed, paste, val_share, repeat_images)
    folder = dataset() / out
    outcome = build_long_vqa(
        folder,
        paths,
        options,
        find_ruler(model, tokenizer, max_tiles),
        root=resolve(root) if root else None,
        images=[resolve(path) for path in images or []],
        workers=workers,
    )
    typer.echo(f"{outcome}: {folder}")


def find_ruler(model: str, tokenizer: Path | None, max_tiles: int | None) -> "Ruler":
    """What tokens are counted with: the rules of a checkpoint folder or of a preset.

    Raises:
        ConfigError: a preset without a tokenizer. UnknownName: neither a checkpoint nor a preset.
    """
    from vlm.core.errors import ConfigError
    from vlm.core.home import pretrained
    from vlm.core.synth.long.ruler import Ruler
    from vlm.models.specs import load_preset, tokens_per_tile

    found = next((p for p in (resolve(model), pretrained() / model) if (p / "config.json").exists()), None)
    if found:
        from vlm.models.checkpoint.read_config import read_layout

        spec = read_layout(found).spec
    else:
        spec = load_preset(model)
    folder = resolve(tokenizer) if tokenizer else found
    if folder is None:
        raise ConfigError(
            f"the preset {model} has no tokenizer",
            fix="add --tokenizer DIR with tokenizer.model or tokenizer.json, or name a checkpoint",
        )
    rule = spec.image_rule.model_copy(update={"max_tiles": max_tiles}) if max_tiles else spec.image_rule
    names = (spec.image_tokens.start, spec.image_tokens.end)
    ruler = Ruler(folder, spec.template, rule, tokens_per_tile(spec), names, spec.system)
    ruler.tokens("")  # a wrong tokenizer is said now
    return ruler
