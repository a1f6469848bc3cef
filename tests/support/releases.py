"""Tiny checkpoints in the published layouts, under the published names, at the commits that the catalogue pins."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from support.hub_repos import COMMIT, Repo, published
from vlm.core.fetch.catalogue import HubSource, load_catalogue
from vlm.models.checkpoint.assemble import build
from vlm.models.checkpoint.convert import convert
from vlm.models.checkpoint.load import save_model
from vlm.models.specs import load_preset

TOKENIZERS = Path(__file__).parents[1] / "golden/data/tokenizers"
TOWER = "model.vision_tower.vision_tower."


def contents(folder: Path) -> dict[str, bytes]:
    """Return name -> content of every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tiny(preset: str, tokenizer: str, to: str, work: Path, **changes: Any) -> Path:
    """Write a fresh tiny model in a published layout; return the folder."""
    spec = load_preset(preset).model_copy(update=changes)
    save_model(build(spec, tokenizer=TOKENIZERS / tokenizer, seed=1), work / "ours", tokenizer=TOKENIZERS / tokenizer)
    return convert(work / "ours", to, work / "published")


def release_files() -> dict[str, dict[str, bytes]]:
    """Return repository -> files of InternVL2-2B, V2PE and ConvLLaVA at 768 px, as tiny models."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        found["OpenGVLab/InternVL2-2B"] = contents(tiny("tiny-internvl2", "internlm2", "internvl", work / "a"))
        v2pe = contents(
            tiny("tiny-internvl2", "internlm2", "internvl", work / "b", strides=64.0, stride_choices=(1.0, 16.0, 64.0))
        )
        both = {f"{name}/{file}": content for name in ("V2PE-32K", "V2PE-256K") for file, content in v2pe.items()}
        found["OpenGVLab/V2PE"] = {**both, "README.md": b"V2PE\n"}
        found |= convllava(tiny("tiny-convllava", "llama", "llava", work / "c"))
    return found


def convllava(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return ConvLLaVA as it was released: pickles in two shards with a copy of the encoder, which is beside them."""
    tower = folder / "vision_tower"
    encoder = load_file(tower / "model.safetensors")
    torch.save(encoder, tower / "pytorch_model.bin")
    (tower / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"mm_vision_tower": "ConvLLaVA/ConvLLaVA-ConvNeXt-768"}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors") | {TOWER + name: tensor for name, tensor in encoder.items()}
    (folder / "model.safetensors").unlink()
    names, shards = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        shards |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    whole = contents(folder)
    return {
        "ConvLLaVA/ConvLLaVA-sft-768": {n: c for n, c in whole.items() if not n.startswith("vision_tower/")},
        "ConvLLaVA/ConvLLaVA-ConvNeXt-768": contents(tower),
    }


def release_repos() -> dict[str, Repo]:
    """Return the repositories, each with one commit: the pinned one, or any."""
    sources = [s for entry in load_catalogue().values() for s in entry.source if isinstance(s, HubSource)]
    pins = {source.repo: source.revision or COMMIT for source in sources}
    return {repo: published(files, pins[repo]) for repo, files in release_files().items()}
