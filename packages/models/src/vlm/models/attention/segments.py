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
from vlm.models.attention.storage import KVStorage, StoredStates


class RowCache:
    """Keys and values of one document.

    Args:
        layers: number of decoder layers.
        storage: how they are kept.

    `length` is the number of cached tokens.
    """

    def __init__(self, layers: int, storage: KVStorage = KVStorage()):
        self.length = 0
        self.keys = [StoredStates(storage) for _ in range(layers)]
        self.values = [StoredStates(storage) for _ in range(layers)]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all buffers, free room included."""
        return sum(states.nbytes for states in (*self.keys, *self.values))

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values [1, H_kv, n, D] of one layer; return those of all tokens."""
        return self.keys[layer].write(key, self.length), self.values[layer].write(value, self.length)

    def copy(self, length: int) -> "RowCache":
        """Return a cache of its own that begins with the first `length` tokens."""
        other = RowCache(0)
        other.length = length
        other.keys, other.values = ([s.beginning(length) for s in states] for states in (self.keys, self.values))
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
