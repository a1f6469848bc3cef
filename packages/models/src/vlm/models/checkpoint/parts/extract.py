"""One part of a checkpoint as a folder of its own, under the names of the published part.

>>> extract("pretrained/InternVL2-2B", "projector", Path("pretrained/projector"))                # doctest: +SKIP

`vlm weights make` takes such a folder as --encoder, --projector or --language; transformers opens a language model.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from vlm.core.errors import ConfigError, UnknownName
from vlm.core.home import new_folder, write_json
from vlm.core.progress import Report, silent
from vlm.models.checkpoint.convert import special_ids, stored_dtype
from vlm.models.checkpoint.formats import internvl, llava
from vlm.models.checkpoint.formats.schema import write_llama
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.load import copy_tokenizer
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.checkpoint.renaming import Patterns, inverted, rename
from vlm.models.checkpoint.safetensors_io import write_shards
from vlm.models.specs import ConvNextSpec, InternVitSpec, ModelSpec

Part = Literal["encoder", "projector", "language"]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def extract(path: str | Path, part: str, out: Path, *, report: Report = silent) -> Path:
    """Write one part of a checkpoint in any format, each tensor as stored; return the folder.

    Args:
        path: a checkpoint, see `load_model`.
        part: `encoder`, `projector` or `language`; a language model comes with its tokenizer.
        out: the folder to write, replaced at once.
        report: called with (bytes done, bytes in all).

    Raises:
        UnknownName: no such part. CheckpointError: a damaged checkpoint, or one without a tokenizer.
        ConfigError: a part that is published under no names of its own.
    """
    if part not in get_args(Part):
        raise UnknownName("part", part, get_args(Part))
    folder = find_checkpoint(path)
    layout = read_layout(folder)
    prefix = {"language": "language_model."}.get(part, f"{part}.")
    reader = CheckpointReader(layout, folder)
    reader.check()
    names = [name for name in reader.wanted if name.startswith(prefix)]
    theirs = {key: name for name, key in rename(names, published_names(layout.spec, part)).renamed.items()}
    with new_folder(out) as target:
        shapes = {key: reader.meta(name) for key, name in theirs.items()}
        write_shards(shapes, lambda key: reader.read(theirs[key]), target, report=report)
        write_json(target / "config.json", part_config(layout.spec, part, reader))
        if part == "language":
            copy_tokenizer(folder, target)
    return out


def published_names(spec: ModelSpec, part: str) -> Patterns:
    """Return the patterns from our names of a part to the published ones.

    Raises:
        ConfigError: a timm trunk, which is published as timm's file alone.
    """
    if part == "language":
        return {"language_model.lm_head.weight": "lm_head.weight", **_below("language_model.model.", "model.")}
    if part == "projector":
        if spec.projector.kind == "pixel_unshuffle":
            return {ours: str(key).removeprefix("mlp1.") for ours, key in inverted(internvl.PROJECTOR).items()}
        return {f"projector.{{}}.{kind}": f"mm_projector.{{}}.{kind}" for kind in ("weight", "bias")}
    if spec.vision.kind == "intern_vit":
        return {ours: str(key).removeprefix("vision_model.") for ours, key in inverted(internvl.ENCODER).items()}
    if spec.vision.kind == "convnext":
        return inverted(llava.ENCODER)
    raise ConfigError(
        f"--part encoder of a {spec.vision.kind} encoder",
        expected="an InternViT or a ConvNeXt, which are published as a part",
        fix="take the whole checkpoint: vlm weights make PRESET --base FOLDER --tokenizer FOLDER --out FOLDER",
    )


def _below(ours: str, theirs: str) -> Patterns:
    """Return patterns for the tensors of a language model below a prefix."""
    layer = [
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"self_attn.{x}_proj.{kind}" for x in "qkvo" for kind in ("weight", "bias")),
        *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
    ]
    names = ["embed_tokens.weight", "norm.weight", *(f"layers.{{}}.{name}" for name in layer)]
    return {ours + name: theirs + name for name in names}


def part_config(spec: ModelSpec, part: str, reader: CheckpointReader) -> dict[str, Any]:
    """Return the `config.json` of a part."""
    dtype = stored_dtype(reader)
    if part == "language":
        kind = spec.language.kind
        named = {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "torch_dtype": dtype}
        return {**write_llama(spec.language), **special_ids(reader.folder), **named}
    if part == "projector":
        return {"projector": spec.projector.model_dump(mode="json"), "torch_dtype": dtype}
    if isinstance(spec.vision, InternVitSpec):
        return {**internvl.write_vision(spec.vision), "torch_dtype": dtype}
    assert isinstance(spec.vision, ConvNextSpec), "published_names refuses others"
    return llava.write_tower(spec.vision, spec.image_rule.size, dtype)
