"""The cache of a document that several questions share.

>>> prefix = model.prefill(document_ids, pixel_values=pixels, position_ids=positions)
>>> model.generate(question_ids, prefix=prefix)          # one question, or a batch padded on the left
>>> ids, places = prefix.rest(whole_ids, whole_positions)  # or whole prompts, checked against the prefix
>>> model.generate(ids, prefix=prefix, position_ids=places)
"""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import Cache

from vlm.core.errors import DataError
from vlm.models.attention import StoredStates
from vlm.models.generation.cache import StoredLayer
from vlm.models.generation.decoder import Decoder


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of a prompt's first tokens. Questions do not change it: each one works on its own cache.

    `input_ids`, `position_ids` [1, P] as given to `prefill`; `states`: (keys, values) of each layer.
    The pixels are not kept: the caller must ask about the same pictures.
    """

    model: Decoder = field(repr=False)
    input_ids: Tensor = field(repr=False)
    position_ids: Tensor = field(repr=False)
    states: tuple[tuple[StoredStates, StoredStates], ...] = field(repr=False)

    @property
    def length(self) -> int:
        """Return the number of tokens."""
        return self.input_ids.shape[1]

    @property
    def next_position(self) -> int:
        """Return the position of the next text token: one after the last; after an image rounded up, as V2PE does."""
        return math.ceil(self.position_ids[0, -1].item()) + 1

    def positions_after(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return positions [B, L] of questions that follow, one by one.

        Raises:
            DataError: images after a V2PE prefix: their stride is not known here.
        """
        if self.position_ids.is_floating_point() and (input_ids == self.model.spec.image_tokens.context_id).any():
            raise DataError("an image follows a V2PE prefix without position_ids", fix="pass them: see `prefix.rest`")
        return (counted(mask) + self.next_position).to(self.position_ids.dtype)

    def cache(self, rows: int = 1) -> Cache:
        """Return a cache of that many rows that begins with this prefix, which stays as it is."""
        begun = ((s.beginning(self.length, rows) for s in layer) for layer in self.states)
        return Cache([StoredLayer(keys, values, self.length) for keys, values in begun])

    def rest(self, input_ids: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what follows the prefix in whole prompts [B, L] without padding: ids and positions [B, L - P].

        Raises:
            DataError: a prompt does not begin with the ids and positions of the prefix, or ends with it.
        """
        n = self.length
        if input_ids.shape != position_ids.shape or input_ids.shape[1] <= n:
            raise DataError(
                f"ids {list(input_ids.shape)} and positions {list(position_ids.shape)} with a prefix of {n} tokens",
                expected=f"two equal shapes [B, L] with L of at least {n + 1}",
            )
        for name, whole, own in (("id", input_ids, self.input_ids), ("position", position_ids, self.position_ids)):
            differs = (whole[:, :n] != own.to(whole.device)).any(0)
            if differs.any():
                at = int(differs.int().argmax())
                raise DataError(
                    f"{name} {at} of a prompt is {whole[:, at].tolist()}, of the prefix {own[0, at].item()}",
                    expected="prompts that begin with the prefix",
                    fix="prefill what these prompts have in common",
                )
        return input_ids[:, n:], position_ids[:, n:]

    def check(self, model: Decoder, mask: Tensor, position_ids: Tensor) -> None:
        """Raise DataError unless questions with that mask and those positions [B, L] can follow."""
        if self.model is not model:
            raise DataError("the prefix was made by another model", fix="prefill it with this one")
        if self.position_ids.is_floating_point() != position_ids.is_floating_point():
            kinds = [str(p.dtype).removeprefix("torch.") for p in (self.position_ids, position_ids)]
            raise DataError(
                f"{kinds[0]} positions in the prefix, {kinds[1]} in the question",
                expected="floats in both (V2PE) or integers in both (0, 1, 2, ...)",
            )
        first = position_ids.gather(1, mask.long().argmax(1, keepdim=True))
        last = self.position_ids[0, -1].to(first.device)
        if (first <= last).any():
            raise DataError(
                f"the prefix ends at position {last.item()}, a question begins at {first.min().item()}",
                expected="positions of the question as they are in the whole prompt",
                fix="leave position_ids out where the question is text, or take them from `prefix.rest`",
            )


def counted(mask: Tensor) -> Tensor:
    """Return positions 0, 1, 2, ... of the tokens that a mask [B, L] keeps, int64."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def check_unscaled(model: Decoder, position_ids: Tensor) -> None:
    """Raise DataError where dynamic NTK would rotate the keys of a prefix by the length of what follows it."""
    spec = model.spec.language
    if spec.rope_scaling is None or spec.rope_scaling.kind != "dynamic" or position_ids.is_floating_point():
        return
    if (length := int(position_ids.max()) + 1) > spec.max_positions:
        raise DataError(
            f"{length:,} positions with a prefix, beyond the {spec.max_positions:,} of the model",
            expected="a length at which dynamic NTK scaling is off: it changes all keys with each length",
            fix="generate without a prefix, or encode the images with V2PE strides",
        )


def states_of(cache: Cache) -> tuple[tuple[StoredStates, StoredStates], ...]:
    """Return (keys, values) of each layer."""
    layers: list[Any] = cache.layers
    return tuple((layer.keys, layer.values) for layer in layers)
