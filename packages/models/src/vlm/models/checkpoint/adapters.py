"""Adapters under the names of another layout, so that peft puts them on a model that other software loads; and back.

>>> convert_adapters("runs/mine/train/mine/adapter", "hf", Path("mine-adapter-hf"))    # doctest: +SKIP
>>> convert_adapters("mine-adapter-hf", "vlm", Path("adapter"), base="mine-hf")         # doctest: +SKIP

peft then needs nothing of ours: `PeftModel.from_pretrained(model_of_the_hf_export, "mine-adapter-hf")`. What peft
trained on an `-hf` folder, whoever ran it, comes back in the names that `vlm train` writes.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad

from vlm.core.errors import CheckpointError, ConfigError
from vlm.core.home import lookup, new_folder, read_json, resolve, write_json
from vlm.models.checkpoint.convert import published_names
from vlm.models.checkpoint.formats import FORMATS, hf
from vlm.models.checkpoint.formats.schema import StoredFacts
from vlm.models.checkpoint.fused_tensors import forms, way_to_make
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.losses import losses, refuse_losses
from vlm.models.checkpoint.reader import CheckpointReader
from vlm.models.checkpoint.renaming import inverted, rename
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
    """Write an adapter folder under the names of the `hf` layout, or back under ours; return the folder written.

    To `hf`, an adapter of a fused layer becomes one for each of its parts, with the same first matrix; other trained
    tensors are written as peft's `modules_to_save`. To `vlm`, parts of a layer that is fused here become one adapter.

    Args:
        path: the folder.
        to: `hf`, or `vlm` for adapters under the names of `hf`.
        out: a new or empty folder.
        base: the checkpoint that the adapters were trained on; None: the one that they name.
        allow: names of `LOSSES` that the base model's export lost too.

    Raises:
        ConfigError: another layout; a base model, a layer or a trained tensor that `hf` has no place for; a kind of
            adapter that ours cannot hold.
        CheckpointError: damaged files, or adapters of another model.
    """
    folder, out = lookup(path), resolve(out)
    if to not in ("hf", "vlm"):
        raise ConfigError(
            f"adapters for the {to} layout",
            expected="--to hf, or --to vlm for the way back",
            fix=f"convert the merged model/ beside {folder.name}/",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", expected="a new or empty folder", fix="choose another -o, or remove it")
    config = read_json(folder / CONFIG)
    named = base or (config.get("base_model_name_or_path") if isinstance(config, dict) else None)
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{folder / CONFIG} names no base model", expected="--base CHECKPOINT")
    checkpoint = find_checkpoint(named)
    layout = read_layout(checkpoint)
    source = CheckpointReader(layout, checkpoint)
    for key in ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias"):
        if config.get(key):
            raise ConfigError(f"{folder / CONFIG} has {key}", expected="plain LoRA with one rank for all layers")
    if (kind := config.get("peft_type", "LORA")) != "LORA" or config.get("bias", "none") != "none":
        raise ConfigError(f"{folder / CONFIG}: {kind}, bias {config.get('bias')}", expected="LORA without biases")
    stored = read_tensors(folder / WEIGHTS)
    extra = read_tensors(folder / EXTRA) if (folder / EXTRA).exists() else {}
    if to == "vlm":
        found, extra, config = adapters_to_ours(stored, config, source)
        config["base_model_name_or_path"] = str(named)
    else:
        refuse_losses(losses(layout.spec, to), to, allow)
        FORMATS[to].write(layout.spec, StoredFacts("float32", source.tokens_per_tile, {}))  # refuses what has no place
        found, layers = renamed_adapters(stored, source, layout.spec.language)
        config = {**config, "target_modules": sorted(layers), "base_model_name_or_path": None}
        if extra:
            trained = renamed_tensors(extra, source, layout.spec.language)
            config["modules_to_save"] = sorted({name.rpartition(".")[0] for name in trained})
            if both := layers & set(config["modules_to_save"]):
                raise ConfigError(f"{min(both)} has an adapter and other trained tensors", expected="one of them")
            found, extra = found | {PEFT + name: tensor for name, tensor in trained.items()}, {}
    with new_folder(out) as temporary:
        write_json(temporary / CONFIG, config)
        save_tensors(found, temporary / WEIGHTS)
        if extra:
            save_tensors(extra, temporary / EXTRA)
    return out


def adapters_to_ours(
    stored: dict[str, Tensor], config: dict[str, Any], source: CheckpointReader
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return adapters under our names, other trained tensors, and the settings.

    Parts of a layer that is fused here share their first matrix when we wrote them. Where they do not, or where some
    have no adapter, the fused one has their matrices side by side, and all ranks grow to its rank: with zeros, which
    change nothing and stay zero in training.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        layer, _, which = name.removeprefix(PEFT).rpartition(".lora_")
        if which in ("A.weight", "B.weight"):
            pairs.setdefault(our_name(f"{layer}.weight"), {})[which[0]] = tensor
        else:
            whole[our_name(name.removeprefix(PEFT))] = tensor
    if broken := sorted(name for name, pair in pairs.items() if len(pair) < 2):
        raise CheckpointError(f"adapters of {broken[0]}", expected="two matrices for each layer")
    rank, fused = int(config["r"]), dict[str, tuple[Tensor, Tensor]]()
    wanted = {name: [part for form in forms(name) for part in form] for name in source.wanted}
    for name, parts in wanted.items():
        if mine := {part: pairs.pop(part) for part in parts if part in pairs}:
            fused[name] = joined(name, mine, source)
    if pairs:
        raise CheckpointError(
            f"adapters of {min(pairs)}, which {source.folder} has not", fix="name their model with --base"
        )
    new_rank = max((len(first) for first, _ in fused.values()), default=rank)
    alpha = config["lora_alpha"] * (rank**0.5 if config.get("use_rslora") else 1) * new_rank / rank
    scale = 1.0 if alpha == int(alpha) else alpha / new_rank  # ours are whole numbers: the rest goes into the matrix
    found = {}
    for name, (first, second) in fused.items():
        layer, more = PEFT + name.removesuffix(".weight"), new_rank - len(first)
        found[f"{layer}.lora_A.weight"] = pad(first, (0, 0, 0, more)).contiguous()
        found[f"{layer}.lora_B.weight"] = pad(second, (0, more)).contiguous() * scale
    layers = sorted(name.removesuffix(".weight") for name in fused)
    extra = {name: made_of(name, whole, source) for name, parts in wanted.items() if whole.keys() & {*parts}}
    if left := sorted(whole.keys() - {part for name in extra for part in wanted[name]}):
        raise CheckpointError(f"{left[0]} is not in {source.folder}", fix="name its model with --base")
    alpha = int(alpha) if scale == 1 else new_rank
    more_settings = {"target_modules": layers, "r": new_rank, "lora_alpha": alpha, "modules_to_save": None}
    return found, extra, {**config, **more_settings, "use_rslora": False}


def our_name(name: str) -> str:
    """Return our name of a tensor of transformers' model, as in memory or as saved.

    Raises:
        CheckpointError: it is none of an InternVL's.
    """
    name = name.replace(".modules_to_save.default.", ".")
    result = rename([name], hf.PATTERNS["any"])
    if name not in result.renamed:
        raise CheckpointError(
            f"{WEIGHTS}: {name} is no tensor of the -hf layout",
            expected="adapters that peft saved for a model of `vlm weights convert --to hf`",
        )
    return result.renamed[name]


def joined(name: str, parts: dict[str, dict[str, Tensor]], source: CheckpointReader) -> tuple[Tensor, Tensor]:
    """Return the two matrices of a layer from those of its parts; a part without an adapter gets zeros.

    Raises:
        CheckpointError: they do not fit the layer.
    """
    language, shape = source.layout.spec.language, source.meta(name).shape
    way: Any = way_to_make(name, [name] if name in parts else [p for form in forms(name)[1:] for p in form])
    firsts = [pair["A"] for pair in parts.values()]
    same = all(torch.equal(first, firsts[0]) for first in firsts)
    columns, at = (len(firsts[0]) if same else sum(map(len, firsts))), 0
    seconds = []
    for part in way.needs:
        pair = parts.get(part)
        width = shape[0] // len(way.needs) if pair is None else len(pair["B"])
        block = firsts[0].new_zeros(width, columns)
        if pair is not None:
            start = 0 if same else at
            block[:, start : start + len(pair["A"])] = pair["B"]
            at += len(pair["A"])
        seconds.append(block)
    order = [parts[part]["A"] for part in way.needs if part in parts]
    first = firsts[0] if same else torch.cat(order)
    second: Tensor = way.make(*seconds, language)
    if [len(second), first.shape[1]] != list(shape):
        raise CheckpointError(
            f"{name}: adapters of another shape than in {source.folder}", fix="name their model with --base"
        )
    return first, second


def made_of(name: str, whole: dict[str, Tensor], source: CheckpointReader) -> Tensor:
    """Return our tensor `name` from trained ones of the `hf` layout.

    Raises:
        ConfigError: only some parts of a fused tensor were trained.
        CheckpointError: another shape.
    """
    way: Any = way_to_make(name, [name] if name in whole else [p for form in forms(name)[1:] for p in form])
    missing = [part for part in way.needs if part not in whole]
    if missing:
        raise ConfigError(f"{name}: {missing[0]} was not trained with its other parts", expected="all of them")
    found: Tensor = way.make(*(whole[part] for part in way.needs), source.layout.spec.language)
    if found.shape != source.meta(name).shape:
        raise CheckpointError(f"{name} has another shape than in {source.folder}", fix="name its model with --base")
    return found.contiguous()


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
