"""Tokens drawn for each row of a batch by itself, so that a reply does not depend on what else is in the batch."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlm.core.errors import ConfigError
from vlm.core.sample.encoded import Encoded

TOP_K = 50
"""Tokens to draw from at most: what `vlm chat` and transformers use."""


class RowDraws(LogitsProcessor):
    """Draw the next token of each row; as a processor of logits of a greedy `generate`, which takes what it leaves.

    The draws of a row follow from the seed and its prompt, pictures included: equal prompts get equal replies.

    Args:
        prompts: The rows.
        temperature: Above 0.
        top_p: Draw from the likeliest tokens of this mass.
        seed: Of all rows.

    Raises:
        ConfigError: A value out of range.

    >>> answer(model, processor, prompts, max_new_tokens=64, draws=RowDraws(prompts, temperature=0.7))  # doctest: +SKIP
    """

    def __init__(self, prompts: Sequence[Encoded], *, temperature: float, top_p: float | None = None, seed: int = 0):
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature {temperature}", expected="above 0")
        if top_p is not None and not 0 < top_p <= 1:
            raise ConfigError(f"top_p {top_p}", expected="in (0, 1]")
        self.seeds = [_seed(seed, prompt) for prompt in prompts]
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature)), TopKLogitsWarper(TOP_K)])
        if top_p is not None and top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(top_p)))
        self._generators: list[torch.Generator] = []

    def rows(self, chosen: Sequence[int]) -> "RowDraws":
        """Return the draws of some of the rows."""
        part = object.__new__(RowDraws)
        part.seeds, part.warpers, part._generators = [self.seeds[i] for i in chosen], self.warpers, []
        return part

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        """Return logits [rows, V] in which the drawn token of each row is the only possible one."""
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        warped: Any = self.warpers(input_ids, scores.float())
        shares = warped.softmax(-1)
        pairs = zip(shares, self._generators, strict=True)
        drawn = torch.stack([torch.multinomial(share, 1, generator=generator) for share, generator in pairs])
        return torch.full_like(scores, -math.inf).scatter(1, drawn, 0.0)


def _seed(seed: int, prompt: Encoded) -> int:
    """Return the seed of a prompt: of its tokens and pixels."""
    digest = hashlib.sha256(f"{seed}/".encode() + prompt.input_ids.tobytes())
    if prompt.pixels is not None:
        digest.update(prompt.pixels.tobytes())
    if prompt.grids is not None:
        digest.update(repr(prompt.grids).encode())
    return int.from_bytes(digest.digest()[:7], "big")
