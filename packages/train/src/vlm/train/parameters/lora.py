"""Low-rank adapters through peft: added to a model, merged into its weights, saved alone, loaded again.

>>> add_adapters(model, recipe.lora, seed=0)
>>> save_adapters(model.state_dict(), recipe.lora, folder)       # peft's own layout
>>> state = merge(model.state_dict(), recipe.lora)               # names and shapes of the model without adapters

Merging and saving work on state dicts, because under ZeRO-3 only a gathered state dict is whole. The base weights stay
the same; a new adapter changes nothing, because its second matrix is zero.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm.core.errors import CheckpointError, ConfigError
from vlm.core.home import new_folder, read_json
from vlm.models.checkpoint.safetensors_io import save_tensors
from vlm.train.parameters.optim import freeze
from vlm.train.recipe.recipe import Lora, Recipe

ADAPTERS = ("*.lora_A.*", "*.lora_B.*")
"""Patterns of the adapters' parameters."""

PEFT = "base_model.model."
"""Prefix of the names in a peft adapter file; the adapter's name (`default`) is left out there."""

WEIGHTS, EXTRA = "adapter_model.safetensors", "trained.safetensors"


def prepare(model: nn.Module, recipe: Recipe) -> dict[str, int]:
    """Add the recipe's adapters to a model and freeze everything else except `trainable`. Works on meta models.

    Returns:
        Part of the model -> number of trained parameters.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    if recipe.lora:
        add_adapters(model, recipe.lora, recipe.seed)
    return freeze(model, recipe.trainable + (ADAPTERS if recipe.lora else ()))


def target_layers(model: nn.Module, spec: Lora) -> list[str]:
    """Return the names of the linear layers that match.

    Raises:
        ConfigError: a pattern matches none, or a layer shares its weight with another module: an output head that is
            tied to the embedding cannot have weights of its own, so its adapter would be lost with the export.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if idle := [pattern for pattern in spec.targets if not fnmatch.filter(linear, pattern)]:
        raise ConfigError(
            f"lora.targets match no linear layer: {', '.join(idle)}",
            expected=f"patterns over names such as {linear[0]} or {linear[-2]}",
        )
    layers = [name for name in linear if any(fnmatch.fnmatchcase(name, pattern) for pattern in spec.targets)]
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    tied = {name: others for others in owners.values() for name in others if len(others) > 1}
    if wrong := [name for name in layers if name in tied]:
        others = [name for name in tied[wrong[0]] if name != wrong[0]]
        raise ConfigError(
            f"lora.targets: {wrong[0]} is tied to {', '.join(others)}: the exported model has one weight for both",
            expected="layers with a weight of their own",
            fix="name the layers without it, such as language_model.model.layers.*",
        )
    return layers


def peft_config(layers: list[str], spec: Lora) -> Any:
    """Return the configuration of these adapters for peft."""
    from peft import LoraConfig

    return LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=layers, bias="none")


def add_adapters(model: nn.Module, spec: Lora, seed: int) -> list[str]:
    """Wrap the matching linear layers in place; return their names. The first matrices depend on `seed` alone."""
    from peft import inject_adapter_in_model

    layers = target_layers(model, spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config(layers, spec), model)
    return layers


def merge(state: dict[str, Tensor], spec: Lora) -> dict[str, Tensor]:
    """Merge adapters into a state dict, under the names of the model without adapters; see `merge_one`."""
    return {name: merge_one([state[part] for part in parts], spec) for name, parts in merged_names(state).items()}


def merged_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return for each tensor of the model without adapters what it is made of: one name, or those of W, A and B."""
    made: dict[str, tuple[str, ...]] = {}
    for name in names:
        if not is_adapter(name):
            layer = name.removesuffix("base_layer.weight")
            more = tuple(f"{layer}lora_{x}.default.weight" for x in "AB") if layer != name else ()
            made[name.replace(".base_layer.", ".")] = (name, *more)
    return made


def merge_one(parts: Sequence[Tensor], spec: Lora | None) -> Tensor:
    """Return W + alpha / rank * B A of [W, A, B], and the one tensor of a list of one.

    The product is computed in float32 at least and added before rounding to the dtype of W.
    """
    if len(parts) == 1:
        return parts[0]
    assert spec is not None
    weight, first, second = parts
    wide = torch.promote_types(weight.dtype, torch.float32)
    update = second.to(wide) @ first.to(wide) * (spec.alpha / spec.rank)
    return (weight.to(wide) + update).to(weight.dtype)


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def saved_names(names: Iterable[str], trained: Sequence[str]) -> list[str]:
    """Return which tensors `save_adapters` writes: the adapters, and what matches the patterns of `trained`."""
    plain = {name: name.replace(".base_layer.", ".") for name in names}
    return [n for n in plain if is_adapter(n) or any(fnmatch.fnmatchcase(plain[n], p) for p in trained)]


def save_adapters(
    state: dict[str, Tensor], spec: Lora, folder: Path, *, trained: tuple[str, ...] = (), base: str | None = None
) -> None:
    """Write the adapters alone in peft's layout, and beside them the other trained tensors (such as a projector).

    The folder is written under a temporary name, then renamed.

    Args:
        state: the state dict of the adapted model, or of it what `saved_names` names.
        spec: the adapters' settings.
        folder: where to write.
        trained: patterns of the other tensors.
        base: the model that the adapters belong to, for the record.
    """
    layers = sorted({n.split(".lora_")[0] for n in state if is_adapter(n)})
    config = peft_config(layers, spec)
    config.base_model_name_or_path = base
    config.inference_mode = True
    own = {PEFT + n.replace(".default.", "."): t.contiguous() for n, t in state.items() if is_adapter(n)}
    extra = {n: state[n].contiguous() for n in saved_names(state, trained) if not is_adapter(n)}
    with new_folder(folder) as temporary:
        config.save_pretrained(temporary)
        save_tensors(own, temporary / WEIGHTS)
        if extra:
            save_tensors(extra, temporary / EXTRA)


def load_adapters(model: nn.Module, folder: Path) -> Lora:
    """Add saved adapters (ours, or peft's for the same layers) to a model; return their settings.

    >>> load_adapters(model, Path("runs/mine/train/internvl-chat-v1-2-finetune-lora/adapter")).rank   # doctest: +SKIP
    16

    Raises:
        CheckpointError: a file is missing, or tensors and layers do not match one to one.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", WEIGHTS):
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} has no {name}", expected="a folder that `vlm train` wrote as adapter/")
    config = read_json(folder / "adapter_config.json")
    spec = Lora(
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config["lora_dropout"],
        targets=tuple(sorted(config["target_modules"])),
    )
    stored = {
        n.removeprefix(PEFT).replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): t
        for n, t in load_file(folder / WEIGHTS).items()
    }
    try:
        add_adapters(model, spec, seed=0)
    except ConfigError as error:
        raise CheckpointError(f"{folder} was made for another model: {error.found}") from error
    if (folder / EXTRA).exists():
        stored |= load_file(folder / EXTRA)
    wanted = {n for n in model.state_dict() if is_adapter(n)}
    wrong = sorted(wanted - stored.keys() | {n for n in stored if n not in model.state_dict()})
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    wrong += [n for n, t in stored.items() if n in shapes and shapes[n] != t.shape]
    if wrong:
        raise CheckpointError(
            f"{folder}: {len(wrong)} tensors missing, unknown or of another shape, first {wrong[0]}",
            fix="use the model that the adapters were trained on",
        )
    model.load_state_dict(stored, strict=False)
    return spec
