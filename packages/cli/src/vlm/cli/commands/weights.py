"""`vlm weights`: make checkpoints from parts, look inside them, convert and compare them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.cli.find import find_model
from vlm.cli.show.positions import positions_line
from vlm.cli.show.say import say, say_json

if TYPE_CHECKING:
    from vlm.models.checkpoint.formats.schema import CheckpointLayout
    from vlm.models.compare import CheckpointDifference

app = typer.Typer(no_args_is_help=True)


@app.command()
def make(
    preset: Annotated[str, typer.Argument(help="Preset, e.g. quickstart-convllava.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, e.g. pretrained/quickstart-convllava.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder with tokenizer files, or with one GGUF file.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of a published InternViT or ConvNeXt, or the state dict of a timm trunk."),
    ] = None,
    language: Annotated[Path | None, typer.Option(help="Folder of a pretrained Llama (safetensors or GGUF).")] = None,
    projector: Annotated[
        Path | None, typer.Option(help="State dict of a pretrained projector, beside a folder as --encoder.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Checkpoint (folder, released name, stage) whose parts are kept where none is given."),
    ] = None,
    resize_positions: Annotated[
        bool,
        typer.Option("--resize-positions", help="Resize an InternViT's position table to the preset's image size."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the fresh parts.")] = 0,
) -> None:
    """Build a start checkpoint: pretrained parts where given, the rest fresh from the seed.

    --base CHECKPOINT --language FOLDER swaps the language model and keeps encoder and projector.

    From folders each tensor goes straight to its place, in the dtype it is stored in. A ConvNeXt with four stages
    gets a fresh fifth one, one with five keeps it.

    Example: vlm weights make convllava-768 -o pretrained/convllava-768-start --tokenizer pretrained/vicuna-7b-v1.5
    --language pretrained/vicuna-7b-v1.5 --encoder pretrained/LAION-CLIP-ConvNeXt-Large-512
    """
    import tempfile

    import torch

    from vlm.core.errors import ConfigError
    from vlm.core.home import resolve
    from vlm.models.checkpoint.assemble import assemble, export_gguf_tokenizer
    from vlm.models.specs import load_preset

    target, folder = resolve(out), resolve(tokenizer)
    from_folder = base is not None or (encoder is not None and resolve(encoder).is_dir())
    if from_folder and language is None and base is None:
        raise ConfigError("a folder as --encoder without --language", expected="both parts")
    if projector and not from_folder:
        raise ConfigError("--projector without a folder as --encoder", expected="both parts")
    if base and encoder and language and projector:
        raise ConfigError("--base with every part given", expected="a part that it gives", fix="leave --base out")
    with tempfile.TemporaryDirectory() as temporary:
        if list(folder.glob("*.gguf")):
            export_gguf_tokenizer(folder, Path(temporary))
            folder = Path(temporary)
        start = assemble(
            load_preset(preset),
            tokenizer=folder,
            encoder=resolve(encoder) if encoder else None,
            language=resolve(language) if language else None,
            projector=resolve(projector) if projector else None,
            base=find_model(base) if base else None,
            resize_positions=resize_positions,
            seed=seed,
        )
        start.write(target, dtype=None if from_folder else torch.float32)
    if from_folder:
        say(f"fresh from seed {seed}: {', '.join(start.fresh) or 'nothing'}", err=True)
        if start.left_out:
            say(f"left out, behind the last block of the preset: {', '.join(start.left_out)}", err=True)
    say(target)


@app.command()
def extract(
    path: Annotated[str, typer.Argument(help="Folder, released name, stage or run; any layout.")],
    part: Annotated[str, typer.Option("--part", help="encoder, projector or language.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder, e.g. pretrained/my-encoder.")],
) -> None:
    """Write one part of a checkpoint as a folder of its own, under its published names, tensor by tensor as stored.

    `vlm weights make` takes the folder as --encoder, --projector or --language; a language model has its tokenizer and
    opens in transformers.

    Example: vlm weights extract runs/v12/train/internvl-chat-v1-2-pretrain --part projector -o pretrained/my-projector
    """
    folder = find_model(path)

    from vlm.core.home import resolve
    from vlm.core.progress import byte_bar
    from vlm.models.checkpoint.parts.extract import extract as extract_part

    with byte_bar(f"{path}: {part}") as report:
        written = extract_part(folder, part, resolve(out), report=report)
    say(written)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="Folder, released name, stage or run.")],
    keys: Annotated[bool, typer.Option("--keys", help="Account for every stored key.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show layout, family, shapes and parameter counts of a checkpoint, without loading it.

    `opens_in` says for each layout of `vlm weights convert --to` which software opens it, or what it cannot express.

    With --keys: how many stored keys are used, and which are dropped by name, missing or unknown (exit code 5 if any is
    missing or unknown).

    Example: vlm weights inspect pretrained/quickstart-convllava --keys
    """
    folder = find_model(path)  # a wrong name is refused before torch is imported

    import torch

    from vlm.models.checkpoint.layout import read_layout
    from vlm.models.checkpoint.losses import opens_in
    from vlm.models.checkpoint.safetensors_io import weight_files
    from vlm.models.vlm import make_model

    layout = read_layout(folder)
    with torch.device("meta"):
        model = make_model(layout.spec)
    counts = {n: sum(p.numel() for p in part.parameters()) for n, part in model.named_children()}
    facts: dict[str, Any] = {
        "path": str(folder),
        "layout": layout.name,
        "parameters": counts,
        "total": sum(p.numel() for p in model.parameters()),
        "tokens_per_tile": model.tokens_per_tile,
        "opens_in": opens_in(layout.spec, model.tokens_per_tile),
        "positions": positions_line(layout.spec).removeprefix("positions: "),
        "files": {f.name: f.stat().st_size for f in weight_files(folder)},
        "towers": {str(t): {f.name: f.stat().st_size for f in weight_files(t)} for t, _ in layout.towers},
        "spec": layout.spec.model_dump(mode="json"),
    }
    if keys:
        del facts["spec"]
        facts["keys"] = key_accounts(layout, folder)
    show_json(facts, as_json)
    if keys and (facts["keys"]["missing"] or facts["keys"]["unknown"]):
        raise typer.Exit(5)


def key_accounts(layout: "CheckpointLayout", folder: Path) -> dict[str, Any]:
    """Count what becomes of each stored key, and whether both vision copies agree."""
    from vlm.core.errors import CheckpointError
    from vlm.models.checkpoint.reader import CheckpointReader

    source = CheckpointReader(layout, folder)
    accounts = source.accounts
    found: dict[str, Any] = {
        "used": len(accounts.used),
        "dropped": accounts.dropped,
        "missing": accounts.missing,
        "unknown": accounts.unknown,
    }
    if accounts.copies:
        try:
            verdict = f"{source.check_copy()} tensors, equal to the tower's"
        except CheckpointError as error:
            verdict = str(error)
        found["vision_copy"] = verdict
    return found


def show_json(facts: dict[str, Any], as_json: bool) -> None:
    """Print JSON to standard output for machines, or colored to standard error for people."""
    if as_json:
        say_json(facts)
    else:
        from vlm.cli.show.screen import Screen

        console = Screen(stderr=True)
        console.print_json(json.dumps(facts), ensure_ascii=True)


@app.command()
def convert(
    path: Annotated[
        str, typer.Argument(help="Folder, released name, stage or run; any layout. Or an adapter/ folder.")
    ],
    to: Annotated[str, typer.Option("--to", help="internvl, llava, hf or vlm.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder, e.g. pretrained/InternVL2-2B-hf.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest file, e.g. 500MB.")] = "5GB",
    vision: Annotated[
        str | None, typer.Option(help="tower or checkpoint: which vision weights of a LLaVA folder, if they differ.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="strides, thumbnail, grids or resize: what the layout may lose; repeat it."),
    ] = None,
    remote_code: Annotated[
        Path | None, typer.Option(help="With --to internvl: folder of a release, whose *.py files are copied.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="With an adapter/ folder: its base model. Default: the one that it names.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="8bit|4bit",
            help="With --to hf: linear layers of the language model for transformers (extra `quant`: bitsandbytes).",
        ),
    ] = None,
) -> None:
    """Write a checkpoint in another layout, bit for bit, one tensor in memory at a time.

    A setting of positions or images that the layout has no key for is refused. With --allow it is left out, and the
    README.md of the new folder says so.

    An adapter/ folder of a training becomes one for peft alone, on the `--to hf` export of its base model; with
    `--to vlm`, adapters that peft trained there come back under our names.

    With --quantize the model is loaded once, on the CPU. transformers opens the folder; vlm does not read it back.

    Example: vlm weights convert pretrained/InternVL2-2B --to hf -o pretrained/InternVL2-2B-hf
    """
    from vlm.core.errors import ConfigError
    from vlm.core.home import lookup
    from vlm.core.progress import byte_bar
    from vlm.models.checkpoint.adapters import convert_adapters, is_adapter_folder
    from vlm.models.checkpoint.convert import convert as convert_checkpoint
    from vlm.models.checkpoint.layout import read_layout

    if is_adapter_folder(lookup(path)):
        if quantize is not None:
            raise ConfigError(
                "--quantize with an adapter/ folder", expected="a model", fix="convert the merged model/ beside it"
            )
        say(convert_adapters(path, to, out, base=base, allow=allow or ()))
        return
    if base is not None:
        raise ConfigError("--base with a checkpoint", expected="an adapter/ folder", fix="leave it out")
    folder = find_model(path)
    if quantize is not None:
        if remote_code is not None:
            raise ConfigError("--remote-code with --quantize", expected="one of them", fix="leave it out")
        from vlm.models.checkpoint.quantized import convert_quantized

        with byte_bar(f"{path} -> {to}, {quantize}") as report:
            written = convert_quantized(
                folder,
                out,
                quantize,
                to=to,
                max_shard_size=max_shard_size,
                vision=vision,  # type: ignore[arg-type]
                allow=allow or (),
                report=report,
            )
        say(positions_line(read_layout(folder).spec), err=True)
        say(written)
        return
    with byte_bar(f"{path} -> {to}") as report:
        written = convert_checkpoint(
            folder,
            to,
            out,
            max_shard_size=max_shard_size,
            vision=vision,  # type: ignore[arg-type]
            allow=allow or (),
            remote_code=remote_code,
            report=report,
        )
    say(positions_line(read_layout(written).spec), err=True)
    if to == "internvl" and remote_code is None:
        say(REMOTE_CODE, err=True)
    say(written)


REMOTE_CODE = (
    "to open it elsewhere (AutoModel, vLLM): the configuration_*.py, modeling_*.py, tokenization_*.py and "
    "conversation.py of the published release belong beside its config.json; --remote-code FOLDER copies them"
)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="Folder, released name, stage or run.")],
    b: Annotated[str, typer.Argument(help="Another one, in any layout.")],
    image: Annotated[Path | None, typer.Option(help="Picture to run. Default: random pixels.")] = None,
    text: Annotated[str | None, typer.Option(help="Question to run, with A's tokenizer. Default: random ids.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random input.")] = 0,
    atol: Annotated[float, typer.Option(help="Activations may differ by this much.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show where two checkpoints differ: their tensors, then the first module whose activations do.

    Exit code 0: equal, 1: different. Settings that differ are listed; alone they do not count.

    Example: vlm weights diff pretrained/InternVL2-2B runs/mine/model
    """
    one, other = find_model(a), find_model(b)  # a wrong name is refused before torch is imported

    from vlm.models.compare import diff as compare

    found = compare(one, other, picture=image, question=text, seed=seed, atol=atol)
    if as_json:
        say_json(found.as_dict())
    else:
        show_difference(found)
    raise typer.Exit(0 if found.equal else 1)


ROWS = 20  # of a table on the terminal; --json has all


def show_difference(found: "CheckpointDifference") -> None:
    """Print one line with the verdict, then a table of what differs."""
    from rich.table import Column, Table

    from vlm.cli.show.screen import Screen

    console = Screen(stderr=True)
    if found.equal:
        verdict = f"equal: all tensors, and the activations of {found.compared} modules"
    elif found.first:
        gap = found.first
        amount = "another shape" if gap.max_abs is None else f"up to {gap.max_abs:.3g}"
        verdict = f"different: first in {gap.name} {gap.a}, {amount}"
    else:
        verdict = f"different: {found.skipped or f'tensors alone; {found.compared} modules give the same'}"
    say(verdict)
    table = Table("what", Column("name", overflow="fold"), "A", "B", "max |A - B|")
    for what, gaps in (("module", found.modules), ("tensor", found.tensors)):
        for gap in gaps[:ROWS]:
            table.add_row(what, gap.name, str(gap.a), str(gap.b), "" if gap.max_abs is None else f"{gap.max_abs:.3g}")
        if len(gaps) > ROWS:
            table.add_row(what, f"... {len(gaps) - ROWS} more (--json lists all)", "", "", "")
    for name in found.only_a[:ROWS]:
        table.add_row("only in A", name, "", "", "")
    for name in found.only_b[:ROWS]:
        table.add_row("only in B", name, "", "", "")
    for key, (one, other) in found.settings.items():
        table.add_row("setting", key, str(one), str(other), "")
    if found.dtypes:
        table.add_row("dtype", f"{len(found.dtypes)} tensors", *next(iter(found.dtypes.values())), "")
    if table.row_count:
        console.print(table)
