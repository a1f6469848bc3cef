"""Checkpoints: load any known layout tensor by tensor, save ours atomically, account for every key."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm.core.errors import CheckpointError
from vlm.core.home import write_json
from vlm.models.attention import check_name
from vlm.models.checkpoint.formats.schema import CheckpointLayout
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.checkpoint.placement import Devices, make_placement
from vlm.models.checkpoint.reader import CheckpointReader, Vision
from vlm.models.checkpoint.safetensors_io import tensors as tensors
from vlm.models.checkpoint.safetensors_io import weight_files, write_shards
from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel, make_model


def renamed_tensors(
    layout: CheckpointLayout, folder: Path, vision: Vision | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Tensors under our names, exactly those of the model that config.json describes, file by file.

    Raises:
        CheckpointError: before the first tensor, if any is unknown, missing, or of a wrong shape or dtype.
    """
    source = CheckpointReader(layout, folder, vision)
    source.check()
    source.check_copy()
    for name in sorted(source.wanted, key=source.file):
        yield name, source.read(name)


def load_model(
    path: str | Path,
    device: str | Devices = "cpu",
    dtype: str = "float32",
    *,
    quantize: str | None = None,
    offload: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    vision: Vision | None = None,
    attention: str = "auto",
    adjust: Callable[[ModelSpec], ModelSpec] | None = None,
    placed: Callable[[nn.Parameter], None] | None = None,
) -> VisionLanguageModel:
    """A model in eval mode from a folder in any known layout (ours, InternVL, its `-hf` form, LLaVA / ConvLLaVA).

    Each tensor goes from the file straight to its device; there is never a second copy of the model.

    Args:
        path: a folder, or a name below `pretrained/`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `map` (layers over all GPUs), or a dict from module to device.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto`: as stored.
        quantize: `8bit` or `4bit`, the language model's linear layers alone (bitsandbytes).
        offload: `cpu` or `disk`: where the decoder layers wait for their turn.
        progress: called with (parameters read, all parameters).
        vision: `tower` or `checkpoint`: which vision weights of a LLaVA folder to take, if the two copies differ.
        attention: `auto`, `sdpa`, `varlen` or `flash_attention_2`; see `vlm.models.attention`.
        adjust: the spec to build instead of the checkpoint's, e.g. with drop path; its tensors must be the same.
        placed: called with each parameter in its place, before the next is read; may leave a slice of it (ZeRO-3).

    Raises:
        CheckpointError: missing or unknown tensors, wrong shapes or dtypes, damaged files, before a tensor is read.
        ConfigError, HardwareError: a placement that is impossible, before anything is read.
    """
    check_name(attention)
    folder = find_checkpoint(path)
    layout = read_layout(folder)
    if adjust is not None:
        layout = replace(layout, spec=adjust(layout.spec))
    placement = make_placement(layout.spec, device, dtype, quantize=quantize, offload=offload)
    with torch.device("meta"):
        model = make_model(layout.spec)
    wanted = dict(model.state_dict())
    if layout.spec.language.tied:
        wanted.pop("language_model.lm_head.weight")
    parameters = {name for name, _ in model.named_parameters()}
    total, done = sum(t.numel() for t in wanted.values()), 0
    placement.prepare(model)
    for name, tensor in renamed_tensors(layout, folder, vision):
        placement.put(model, name, tensor)
        done += tensor.numel()
        del tensor  # before the next one is read
        if placed and name in parameters:
            placed(model.get_parameter(name))
        if progress:
            progress(done, total)
    placement.finish(model)
    model.set_attention(attention)
    return model.eval()


def save_model(model: VisionLanguageModel, folder: Path, *, tokenizer: Path | None = None) -> None:
    """Write a model in our layout: config.json, safetensors shards, tokenizer files."""
    save_state(model.state_dict(), model.spec, folder, tokenizer=tokenizer)


def save_state(tensors: dict[str, Tensor], spec: ModelSpec, folder: Path, *, tokenizer: Path | None = None) -> None:
    """`save_model` of a state dict; written under a temporary name, then renamed."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = dict(tensors)
    if spec.language.tied:
        state.pop("language_model.lm_head.weight")
    write_shards(state, state.__getitem__, temporary)
    write_json(temporary / "config.json", {"model_type": "vlm", "spec": spec.model_dump(mode="json")})
    if tokenizer is not None:
        copy_tokenizer(tokenizer, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files that `source` has."""
    found = [source / n for n in TOKENIZER_FILES if (source / n).exists()]
    if not found:
        raise CheckpointError(f"no tokenizer in {source}", expected=f"one of {', '.join(TOKENIZER_FILES[:2])}")
    for file in found:
        shutil.copyfile(file, target / file.name)


def fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of config and weight files, those of a vision tower's folder included."""
    digest, layout = hashlib.sha256(), read_layout(folder)
    towers = [file for tower, _ in layout.towers for file in weight_files(tower)]
    for file in [folder / "config.json", *weight_files(folder), *layout.files, *towers]:
        digest.update(file.name.encode())
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def initialized(spec: ModelSpec, seed: int) -> VisionLanguageModel:
    """A model with fresh weights that depend on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_model(spec)
