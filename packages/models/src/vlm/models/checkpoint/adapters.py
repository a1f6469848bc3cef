"""Adapters under the names of another layout, so that peft puts them on a model that other software loads.

>>> convert_adapters("runs/mine/train/mine/adapter", "hf", Path("mine-adapter-hf"))    # doctest: +SKIP

peft then needs nothing of ours: `PeftModel.from_pretrained(model_of_the_hf_export, "mine-adapter-hf")`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vlm.core.errors import CheckpointError, ConfigError
from vlm.core.home import new_folder, read_json, resolve, write_json
from vlm.models.checkpoint.convert import published_names
from vlm.models.checkpoint.formats import FORMATS, hf
from vlm.models.checkpoint.formats.schema import StoredFacts
from vlm.models.checkpoint.fused_tensors import way_to_make
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.losses import losses, refuse_losses
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.checkpoint.renaming import inverted
from vlm.models.checkpoint.safetensors_io import save_tensors
from vlm.models.specs import LanguageSpec

CONFIG, WEIGHTS, EXTRA = "adapter_config.json", "adapter_model.safetensors", "trained.safetensors"
PEFT = "base_model.model."
"""Prefix of the names in a peft adapter file."""


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder holds adapters instead of a checkpoint."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def convert_adapters(
    path: str | Path, to: str, out: Path, *, base: str | None = None, allow: Collection[str] = ()
) -> Path:
    """Write an `adapter/` folder of a training under the names of the `hf` layout; return the folder written.

    An adapter of a fused layer becomes one for each of its parts, with the same first matrix. Other trained tensors
    are written as peft's `modules_to_save`.

    Args:
        path: the folder.
        to: `hf`.
        out: a new or empty folder.
        base: the checkpoint that the adapters were trained on; None: the one that they name.
        allow: names of `LOSSES` that the base model's export lost too.

    Raises:
        ConfigError: another layout; a base model, a layer or a trained tensor that `hf` has no place for.
        CheckpointError: damaged files, or adapters of another model.
    """
    folder, out = resolve(path), resolve(out)
    if to != "hf":
        raise ConfigError(
            f"adapters for the {to} layout", expected="--to hf", fix=f"convert the merged model/ beside {folder.name}/"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", expected="a new or empty folder", fix="choose another -o, or remove it")
    config = read_json(folder / CONFIG)
    named = base or (config.get("base_model_name_or_path") if isinstance(config, dict) else None)
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{folder / CONFIG} names no base model", expected="--base CHECKPOINT")
    checkpoint = find_checkpoint(named)
    layout = read_layout(checkpoint)
    refuse_losses(losses(layout.spec, to), to, allow)
    source = CheckpointReader(layout, checkpoint)
    FORMATS[to].write(layout.spec, StoredFacts("float32", source.tokens_per_tile, {}))  # what it cannot hold is refused
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ConfigError(f"{folder / CONFIG} has rank_pattern or alpha_pattern", expected="one rank for all layers")
    adapters, layers = renamed_adapters(read_tensors(folder / WEIGHTS), source, layout.spec.language)
    config = {**config, "target_modules": sorted(layers), "base_model_name_or_path": None}
    if (folder / EXTRA).exists():
        trained = renamed_tensors(read_tensors(folder / EXTRA), source, layout.spec.language)
        config["modules_to_save"] = sorted({name.rpartition(".")[0] for name in trained})
        if both := layers & set(config["modules_to_save"]):
            raise ConfigError(f"{min(both)} has an adapter and other trained tensors", expected="one of them")
        adapters |= {PEFT + name: tensor for name, tensor in trained.items()}
    with new_folder(out) as temporary:
        write_json(temporary / CONFIG, config)
        save_tensors(adapters, temporary / WEIGHTS)
    return out


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file. Raises CheckpointError for a missing or damaged one."""
    try:
        return load_file(file)
    except Exception as error:
        raise CheckpointError(f"{file}: {error}", expected="a file that `vlm train` wrote in adapter/") from error


def renamed_adapters(
    stored: dict[str, Tensor], source: CheckpointReader, language: LanguageSpec
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the matrices under the names of `hf`, and the layers that they belong to."""
    found: dict[str, Tensor] = {}
    layers = {name.removeprefix(PEFT).rpartition(".lora_")[0] for name in stored}
    theirs: set[str] = set()
    for layer in sorted(layers):
        pair = [stored.get(f"{PEFT}{layer}.lora_{x}.weight") for x in "AB"]
        weight = f"{layer}.weight"
        if pair[0] is None or pair[1] is None or weight not in source.wanted:
            raise CheckpointError(
                f"adapters of {layer or min(stored)}", expected=f"two matrices for a layer of {source.folder}"
            )
        if [pair[1].shape[0], pair[0].shape[1]] != list(source.meta(weight).shape):
            raise CheckpointError(
                f"{layer}: adapters of another shape than in {source.folder}",
                fix="name the model that they were trained on with --base",
            )
        for name, ours in names_in_memory(weight).items():
            target = name.removesuffix(".weight")
            theirs.add(target)
            found[f"{PEFT}{target}.lora_A.weight"] = pair[0].clone()
            found[f"{PEFT}{target}.lora_B.weight"] = made(ours, weight, pair[1], language)
    return found, theirs


def renamed_tensors(stored: dict[str, Tensor], source: CheckpointReader, language: LanguageSpec) -> dict[str, Tensor]:
    """Return whole tensors under the names of `hf`."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name not in source.wanted:
            raise CheckpointError(f"{EXTRA}: {name} is not in {source.folder}", fix="name its model with --base")
        for target, ours in names_in_memory(name).items():
            if not target.endswith((".weight", ".bias")):
                raise ConfigError(
                    f"{name} was trained beside the adapters; peft saves whole modules only",
                    fix="convert the merged model/ beside adapter/",
                )
            found[target] = made(ours, name, tensor, language)
    return found


def names_in_memory(name: str) -> dict[str, str]:
    """Return {name in transformers' model: our name of that part} of one of our tensors."""
    if found := published_names(name, inverted(hf.IN_MEMORY)):
        return found
    raise ConfigError(f"{name} has no place in the hf layout", fix="train adapters of layers that it has")


def made(ours: str, name: str, tensor: Tensor, language: LanguageSpec) -> Tensor:
    """Return the rows of a tensor that belong to the part `ours`."""
    way: Any = way_to_make(ours, [name])
    part: Tensor = way.make(tensor, language)
    return part.contiguous()
