"""Answers to batches of prompts: rows padded on the left, each image encoded once, positions exact.

>>> prompts = [processor.encode(messages) for messages in conversations]                   # doctest: +SKIP
>>> [reply.text for reply in answer(model, processor, prompts, max_new_tokens=64)]         # doctest: +SKIP

Shapes: B rows of L tokens, T tokens per tile, C channels.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.encoded import Encoded
from vlm.models.batch import upload
from vlm.models.features import TileFeatures
from vlm.models.generation.drawing import RowDraws
from vlm.models.processor import Processor
from vlm.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Reply:
    """An answer: `text` stripped and without stop tokens; `n_new` tokens with the stop token; `finished` by one."""

    text: str
    n_new: int
    finished: bool


def encode_unique(
    model: VisionLanguageModel,
    processor: Processor,
    batch: list[Encoded],
    chunk: int,
    known: TileFeatures | None = None,
) -> Tensor | None:
    """Return features [tiles, T, C] of all tiles of the batch in reading order; equal pictures are encoded once.

    Those that `known` holds are not encoded again, and the others are added to it.
    """
    tiles = [tile for sample in batch if sample.pixels is not None for tile in sample.pixels]
    if not tiles:
        return None
    grids = [grid for sample in batch for grid in sample.grids or ()] or None
    return (known or TileFeatures(model, processor, limit=0)).of(tiles, chunk, grids)


def left_padded(batch: list[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and positions [B, L]; positions are float64 (V2PE), or int64 where all count 0, 1, 2, ....

    Raises:
        DataError: V2PE and plain samples together. RoPE scaling applies to plain counting and not to V2PE, and the
            dtype of one tensor cannot mark both.
    """
    plain = sum(sample.strides is None for sample in batch)
    if plain not in (0, len(batch)):
        raise DataError(
            f"{plain} of {len(batch)} samples count plainly, the others by V2PE",
            expected="one kind of positions in a batch",
            fix="pad each kind separately, as `answer` does",
        )
    length = max(len(sample.input_ids) for sample in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros(len(batch), length, dtype=torch.long)
    positions = torch.zeros(len(batch), length, dtype=torch.int64 if plain else torch.float64)
    for row, sample in enumerate(batch):
        n = len(sample.input_ids)
        ids[row, length - n :] = torch.from_numpy(sample.input_ids)
        mask[row, length - n :] = 1
        positions[row, length - n :] = torch.from_numpy(sample.position_ids)
    return ids, mask, positions


def shared_length(batch: list[Encoded]) -> int:
    """Return how many leading tokens all samples share in ids, positions and pixels; fewer than any sample has.

    An image is shared completely or not at all.
    """
    first, others = batch[0], batch[1:]
    n = min(len(sample) for sample in batch) - 1
    for other in others:
        same = (first.input_ids[:n] == other.input_ids[:n]) & (first.position_ids[:n] == other.position_ids[:n])
        n = n if same.all() else int(same.argmin())
    tiles = 0
    for i, (start, count, used) in enumerate(first.image_spans):
        if start + count > n:
            return min(n, start)
        page = slice(tiles, tiles + used)
        for other in others:
            if first.pixels is None or other.pixels is None or other.image_spans[i] != first.image_spans[i]:
                return start
            if not np.array_equal(first.pixels[page], other.pixels[page]) or _grids(first, page) != _grids(other, page):
                return start
        tiles += used
    return n


def _grids(sample: Encoded, tiles: slice) -> tuple[tuple[int, int], ...] | None:
    """Return the grids of the whole images whose cells are within those tiles; None where there are no cells."""
    if sample.grids is None:
        return None
    first, last, _ = tiles.indices(sample.n_tiles)
    return tuple(g for g, p in zip(sample.grids, sample.pictures, strict=True) if first <= p.start < last)


def split(sample: Encoded, n: int) -> tuple[Encoded, Encoded]:
    """Return the first n tokens and the rest, each with its images; n is not within an image."""
    images = sum(start < n for start, _, _ in sample.image_spans)
    tiles = sum(used for _, _, used in sample.image_spans[:images])

    def part(offset: int, tokens: slice, mine: slice, pages: slice) -> Encoded:
        spans = [(start - offset, count, used) for start, count, used in sample.image_spans[mine]]
        return replace(
            sample,
            input_ids=sample.input_ids[tokens],
            labels=sample.labels[tokens],
            position_ids=sample.position_ids[tokens],
            image_spans=spans,
            pixels=sample.pixels[pages] if spans and sample.pixels is not None else None,
            strides=None if sample.strides is None else sample.strides[mine],
            grids=_grids(sample, pages),
        )

    return (
        part(0, slice(n), slice(images), slice(tiles)),
        part(n, slice(n, None), slice(images, None), slice(tiles, None)),
    )


def document_length(model: VisionLanguageModel, batch: list[Encoded]) -> int:
    """Return how many tokens to compute once for the batch: those all share if at least half of the longest, else 0."""
    longest, language = max(len(sample) for sample in batch), model.spec.language
    scaled = batch[0].strides is None and language.rope_scaling is not None and longest > language.max_positions
    if len(batch) == 1 or scaled:  # with dynamic NTK, keys depend on the length
        return 0
    shared = shared_length(batch)
    return shared if 2 * shared >= longest else 0


@torch.inference_mode()
def answer(
    model: VisionLanguageModel,
    processor: Processor,
    batch: list[Encoded],
    *,
    max_new_tokens: int,
    image_chunk: int = 32,
    draws: RowDraws | None = None,
    known: TileFeatures | None = None,
    **settings: Any,
) -> list[Reply]:
    """Answer a batch of prompts, greedily unless `draws`, `do_sample` or `num_beams` is set.

    A prefix that all prompts share, e.g. one document with several questions, is computed once. V2PE and plain prompts
    are answered one kind after the other.

    Args:
        model: the model.
        processor: its processor.
        batch: encoded prompts, which end with the start of an assistant's turn.
        max_new_tokens: greatest length of an answer.
        image_chunk: tiles encoded at once.
        draws: draws the tokens of each row by itself.
        known: features of tiles that earlier batches encoded; those of this batch are added.
        settings: keywords of `model.generate`.

    Raises:
        ConfigError: impossible settings, or several answers to each prompt.
    """
    if settings.get("num_return_sequences") not in (None, 1):
        raise ConfigError("several answers to each prompt", expected="one: a reply for each prompt", fix="ask again")
    plain = [sample.strides is None for sample in batch]
    if len(set(plain)) == 2:
        common = {"max_new_tokens": max_new_tokens, "image_chunk": image_chunk, "known": known, **settings}
        kinds = [[i for i, p in enumerate(plain) if p == kind] for kind in (False, True)]
        replies = [
            iter(answer(model, processor, [batch[i] for i in rows], draws=draws and draws.rows(rows), **common))
            for rows in kinds
        ]
        return [next(replies[kind]) for kind in plain]
    if draws is not None:
        settings["logits_processor"] = LogitsProcessorList([draws])
    device = next(model.parameters()).device
    prefix = None
    if length := document_length(model, batch):
        parts = [split(sample, length) for sample in batch]
        document, batch = parts[0][0], [question for _, question in parts]
        ids, _, positions = (upload(t, device) for t in left_padded([document]))
        features = encode_unique(model, processor, [document], image_chunk, known)
        prefix = model.prefill(ids, features=features, position_ids=positions)
    features = encode_unique(model, processor, batch, image_chunk, known)
    ids, mask, positions = (upload(t, device) for t in left_padded(batch))
    stop = processor.stop_ids
    new = model.generate(
        ids,
        prefix=prefix,
        features=features,
        attention_mask=mask,
        position_ids=positions,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop or None,
        pad_token_id=stop[0] if stop else 0,
        **settings,
    )
    return [reply(processor, row, stop) for row in new.tolist()]


def reply(processor: Processor, ids: list[int], stop: list[int]) -> Reply:
    """Return the answer in new token ids, cut at the first stop token."""
    end = next((i for i, token in enumerate(ids) if token in stop), None)
    kept = ids if end is None else ids[:end]
    text = processor.tokenizer.decode(kept, skip_special=True).strip()
    return Reply(text, len(kept) + (end is not None), end is not None)
