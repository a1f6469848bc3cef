"""`vlm weights`: make checkpoints from parts and look inside them."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def make(
    preset: Annotated[str, typer.Argument(help="Preset, e.g. quickstart-convllava.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, e.g. pretrained/quickstart-convllava.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder with tokenizer files, or with one GGUF file.")],
    encoder: Annotated[Path | None, typer.Option(help="State dict of the pretrained timm trunk.")] = None,
    language: Annotated[Path | None, typer.Option(help="Folder of a pretrained Llama (safetensors or GGUF).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the fresh parts.")] = 0,
) -> None:
    """Build a start checkpoint: pretrained parts where given, the rest fresh from the seed.

    Example: vlm weights make quickstart-convllava -o pretrained/my-start --tokenizer pretrained/quickstart-tokenizer
    """
    import tempfile

    from vlm.core.home import resolve
    from vlm.models.parts import build, export_gguf_tokenizer
    from vlm.models.specs import load_preset
    from vlm.models.weights import save_model

    spec, target, folder = load_preset(preset), resolve(out), resolve(tokenizer)
    with tempfile.TemporaryDirectory() as temporary:
        if list(folder.glob("*.gguf")):
            export_gguf_tokenizer(folder, Path(temporary))
            folder = Path(temporary)
        model = build(
            spec,
            tokenizer=folder,
            encoder=resolve(encoder) if encoder else None,
            language=resolve(language) if language else None,
            seed=seed,
        )
        save_model(model, target, tokenizer=folder)
    typer.echo(target)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="Checkpoint folder or name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Layout, family, shapes and parameter counts of a checkpoint, without loading it.

    Example: vlm weights inspect pretrained/quickstart-convllava
    """
    import torch

    from vlm.models.layouts import read_layout
    from vlm.models.vlm import make_model
    from vlm.models.weights import find_checkpoint, weight_files

    folder = find_checkpoint(path)
    layout = read_layout(folder)
    with torch.device("meta"):
        model = make_model(layout.spec)
    counts = {n: sum(p.numel() for p in part.parameters()) for n, part in model.named_children()}
    facts = {
        "path": str(folder),
        "layout": layout.name,
        "parameters": counts,
        "total": sum(p.numel() for p in model.parameters()),
        "tokens_per_tile": model.tokens_per_tile,
        "files": {f.name: f.stat().st_size for f in weight_files(folder)},
        "spec": layout.spec.model_dump(mode="json"),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        from vlm.cli.show import console

        console.print_json(json.dumps(facts, ensure_ascii=False))
