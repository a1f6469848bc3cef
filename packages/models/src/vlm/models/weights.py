"""Checkpoints: load any known layout tensor by tensor, save ours atomically, account for every key."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm.core.errors import CheckpointError
from vlm.core.home import pretrained, resolve, write_json
from vlm.models import adapters
from vlm.models.layouts import Layout, read_layout
from vlm.models.specs import ModelSpec
from vlm.models.vlm import VisionLanguageModel, make_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint by path or by its name below `pretrained/`. Raises CheckpointError with the line that fetches it."""
    for candidate in (resolve(path), pretrained() / str(path), pretrained() / Path(path).name):
        if (candidate / "config.json").exists():
            return candidate
    raise CheckpointError(
        f"no checkpoint at {path}",
        expected=f"a folder with config.json, here or below {pretrained()}",
        fix=f"vlm download {Path(path).name}",
    )


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: safetensors if there are any, else pickles (read with `weights_only`)."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{index} is no index of shards: {error}", fix="download it again") from error
        files = [folder / n for n in names]
        if missing := [f.name for f in files if not f.exists()]:
            raise CheckpointError(f"{folder}: missing shards {', '.join(missing)}", fix="download the checkpoint again")
        return files
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise CheckpointError(f"no weights in {folder}", expected="*.safetensors or pytorch_model*.bin")


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a checkpoint folder, one tensor in memory at a time for safetensors."""
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt") as f:
                    for key in f.keys():  # noqa: SIM118
                        yield key, f.get_tensor(key)
            except SafetensorError as error:
                raise CheckpointError(f"{file}: {error}", fix="the file is damaged: download it again") from error
        else:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                raise CheckpointError(
                    f"{file}: {error}",
                    expected="a state dict of tensors alone, as torch.save writes it",
                    fix="download it again, or take the safetensors of the same model",
                ) from error
            yield from state.items()


def renamed_tensors(layout: Layout, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors under our names; fused InternLM2 projections are split."""
    if layout.patterns is None:
        yield from tensors(folder)
        return
    tower_copy = "model.vision_tower.vision_tower."
    for source, patterns in ((folder, layout.patterns), *layout.towers):
        for key, tensor in tensors(source):
            result = adapters.rename([key], patterns)
            adapters.check_unknown(result, str(source), allow=lambda k: k.startswith(tower_copy))
            for name in result.renamed.values():
                if match := adapters.WQKV.match(name):
                    parts = adapters.split_wqkv(tensor, layout.spec.language)
                    for letter, part in zip("qkv", parts, strict=True):
                        yield f"{match[1]}{letter}_proj.weight", part.contiguous()
                else:
                    yield name, tensor


def load_model(path: str | Path, device: str = "cpu", dtype: str = "float32") -> VisionLanguageModel:
    """A model in eval mode from a folder in any known layout (ours, InternVL, LLaVA / ConvLLaVA).

    Raises:
        CheckpointError: missing or unknown tensors, wrong shapes, damaged files; names them.
    """
    folder = find_checkpoint(path)
    layout = read_layout(folder)
    with torch.device("meta"):
        model = make_model(layout.spec)
    wanted = dict(model.state_dict())
    if layout.spec.language.tied:
        wanted.pop("language_model.lm_head.weight")
    for name, tensor in renamed_tensors(layout, folder):
        if name not in wanted:
            raise CheckpointError(f"{folder}: unexpected tensor {name}", expected="the tensors of config.json's model")
        if wanted[name].shape != tensor.shape:
            raise CheckpointError(f"{folder}: {name} is {list(tensor.shape)}", expected=f"{list(wanted[name].shape)}")
        target = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
        model.load_state_dict({name: tensor.to(device, target)}, strict=False, assign=True)
        del wanted[name]
    if wanted:
        raise CheckpointError(f"{folder}: {len(wanted)} missing tensors, first {', '.join(list(wanted)[:4])}")
    model.language_model.tie_weights()
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
    state = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    if spec.language.tied:
        state.pop("language_model.lm_head.weight")
    save_torch_state_dict(state, temporary, max_shard_size="5GB")
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
    """sha256 over the names and contents of config and weight files: changes with any tensor."""
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weight_files(folder)]:
        digest.update(file.name.encode())
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def initialised(spec: ModelSpec, seed: int) -> VisionLanguageModel:
    """A model with fresh weights that depend on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_model(spec)
