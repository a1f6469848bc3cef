"""Tiny models of every family whose answers depend on every input, with the tokenizers of the golden fixtures."""

from pathlib import Path

import torch

from vlm.models.checkpoint.assemble import build
from vlm.models.specs import load_preset
from vlm.models.vlm import VisionLanguageModel

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
TOKENIZERS = {
    "tiny-internvl2": GOLDEN / "tokenizers" / "internlm2",
    "tiny-internvl-chat-v1-2": GOLDEN / "tokenizers" / "hermes2",
    "tiny-convllava": GOLDEN / "tokenizers" / "llama",
    "tiny-internvl3": GOLDEN / "tokenizers" / "qwen2",
}


def lively_model(preset: str = "tiny-internvl2", **language) -> VisionLanguageModel:
    """A fresh model in eval mode whose answers depend on every input.

    At the usual initialization a tiny model's logits hardly move with its positions or pixels, and a test could not
    fail: gains are raised and layer scales opened.
    """
    model = build(load_preset(preset).with_language(**language), tokenizer=TOKENIZERS[preset], seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
            elif name.startswith("language_model") and parameter.dim() == 2:
                parameter.mul_(6)
            elif name.endswith("_proj.bias"):  # Qwen2's, zero in a fresh model
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return model.eval()


def random_ids(model: VisionLanguageModel, *parts: int | str, seed: int = 0) -> torch.Tensor:
    """`random_ids(model, 3, "image", 4)`: ids [1, n] of text and of tiles between them, brackets left out."""
    generator = torch.Generator().manual_seed(seed)
    context = model.spec.image_tokens.context_id
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(10, 300 if context == 337 else 500, (part,), generator=generator).tolist()
        else:
            ids += [context] * model.tokens_per_tile
    return torch.tensor([ids])


def random_tiles(model: VisionLanguageModel, n: int, seed: int = 0) -> torch.Tensor:
    """`n` random normalized tiles."""
    size = model.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
