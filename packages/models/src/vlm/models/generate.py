"""Batched answers: rows of unequal length padded on the left, each image encoded once, exact positions kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.core.encode import Encoded
from vlm.models.processor import Processor
from vlm.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Reply:
    """`text` without stop tokens, stripped; `n_new` tokens incl. the stop token; `finished`: a stop token came."""

    text: str
    n_new: int
    finished: bool


def encode_unique(model: VisionLanguageModel, processor: Processor, batch: list[Encoded], chunk: int) -> Tensor | None:
    """Features of all tiles of the batch in reading order [tiles, T, C]; equal tiles are encoded once."""
    tiles = [tile for sample in batch if sample.pixels is not None for tile in sample.pixels]
    if not tiles:
        return None
    index: dict[bytes, int] = {}
    order = [index.setdefault(tile.tobytes(), len(index)) for tile in tiles]
    unique = [tiles[order.index(i)] for i in range(len(index))]
    device = next(model.parameters()).device
    pixels = processor.pixels(np.stack(unique)).to(device)
    return model.encode_images(pixels, chunk)[torch.tensor(order, device=device)]


def left_padded(batch: list[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask [B, L] and positions [B, L]: float64, or int64 where all count 0, 1, 2, ...; pads are masked."""
    length = max(len(sample.input_ids) for sample in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros(len(batch), length, dtype=torch.long)
    plain = all(sample.strides is None for sample in batch)
    positions = torch.zeros(len(batch), length, dtype=torch.int64 if plain else torch.float64)
    for row, sample in enumerate(batch):
        n = len(sample.input_ids)
        ids[row, length - n :] = torch.from_numpy(sample.input_ids)
        mask[row, length - n :] = 1
        positions[row, length - n :] = torch.from_numpy(sample.position_ids)
    return ids, mask, positions


@torch.inference_mode()
def answer(
    model: VisionLanguageModel,
    processor: Processor,
    batch: list[Encoded],
    *,
    max_new_tokens: int,
    image_chunk: int = 32,
    **kwargs: Any,
) -> list[Reply]:
    """Answers to a batch of prompts (greedy unless `do_sample` or `num_beams` say otherwise)."""
    device = next(model.parameters()).device
    features = encode_unique(model, processor, batch, image_chunk)
    ids, mask, positions = (t.to(device) for t in left_padded(batch))
    stop = processor.stop_ids
    new = model.generate(
        ids,
        features=features,
        attention_mask=mask,
        position_ids=positions,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=stop[0],
        **kwargs,
    )
    return [reply(processor, row, stop) for row in new.tolist()]


def reply(processor: Processor, ids: list[int], stop: list[int]) -> Reply:
    """Cut at the first stop token."""
    end = next((i for i, token in enumerate(ids) if token in stop), None)
    kept = ids if end is None else ids[:end]
    text = processor.tokenizer.decode(kept, skip_special=True).strip()
    return Reply(text, len(kept) + (end is not None), end is not None)
