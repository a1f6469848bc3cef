"""Attention of a packed row whose documents continue from caches: prompts and single new tokens in one forward pass.

>>> cache = RowCache(layers)                                                      # doctest: +SKIP
>>> model.decode(embeddings, attention_mask=None, position_ids=positions, segments=Segments([cache], [n]))

The linear layers see all tokens of the pack at once; attention goes from document to document, each over its own keys,
so that a short one never pays for a long one beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.models.attention.local import causal

ROOM = 128
"""Tokens of free room in a new buffer."""


class RowCache:
    """Keys and values of one document, in buffers that grow by half when they are full.

    Args:
        layers: number of decoder layers.

    `length` is the number of cached tokens; each buffer is [1, H_kv, room, D].
    """

    def __init__(self, layers: int):
        self.length = 0
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    @property
    def nbytes(self) -> int:
        """Return the bytes of all buffers, free room included."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values) if t is not None)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values [1, H_kv, n, D] of one layer; return those of all tokens."""
        end = self.length + key.shape[2]
        result = []
        for buffers, new in ((self.keys, key), (self.values, value)):
            buffer = buffers[layer]
            if buffer is None or buffer.shape[2] < end:
                room = max(end + ROOM, 0 if buffer is None else buffer.shape[2] * 3 // 2)
                grown = new.new_empty(1, new.shape[1], room, new.shape[3])
                if buffer is not None:
                    grown[:, :, : self.length] = buffer[:, :, : self.length]
                buffers[layer] = buffer = grown
            buffer[:, :, self.length : end] = new
            result.append(buffer[:, :, :end])
        return result[0], result[1]

    def copy(self, length: int) -> "RowCache":
        """Return a cache of its own that begins with the first `length` tokens."""
        other = RowCache(len(self.keys))
        other.length = length
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, buffer in enumerate(mine):
                if buffer is not None and length:
                    new = buffer.new_empty(1, buffer.shape[1], length + ROOM, buffer.shape[3])
                    new[:, :, :length] = buffer[:, :, :length]
                    theirs[layer] = new
        return other


class GivenUp(Exception):
    """A forward pass was stopped between two layers; its caches hold what they held before."""


@dataclass(frozen=True)
class Segments:
    """The documents of a packed row: `counts[i]` tokens continue the cache `rows[i]`.

    `stop` is asked before each layer's attention whether the forward pass shall be given up.
    """

    rows: Sequence[RowCache]
    counts: Sequence[int]
    stop: Callable[[], bool] | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attend within each document [1, H, L, D] and to what is cached of it. Raises GivenUp where `stop` says so."""
        if self.stop is not None and self.stop():
            raise GivenUp
        parts = zip(self.rows, *(t.split(list(self.counts), dim=2) for t in (query, key, value)), strict=True)
        outputs = []
        for row, q, k, v in parts:
            keys, values = row.append(layer, k, v)
            outputs.append(causal(q, keys, values, scale))
        return torch.cat(outputs, dim=2)

    def commit(self) -> None:
        """Count the new tokens as cached; call it once after the forward pass."""
        for row, count in zip(self.rows, self.counts, strict=True):
            row.length += count
