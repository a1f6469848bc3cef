"""Keys and values of a model's layers as a cache of transformers, kept as a `KVStorage` says."""

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from vlm.models.attention import KVStorage, StoredStates


class StoredLayer(CacheLayerMixin):
    """One layer: `keys` and `values` are `StoredStates`, `length` the number of cached tokens."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, keys: StoredStates, values: StoredStates, length: int = 0):
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Any = keys
        self.values: Any = values
        self.length = length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the first write makes the buffers."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the states [B, H_kv, n, D] of new tokens; return those of all tokens."""
        start, self.length, self.is_initialized = self.length, self.length + key_states.shape[2], True
        return self.keys.write(key_states, start), self.values.write(value_states, start)

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys a mask of so many new queries has, and the first of them."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget all tokens; the buffers stay."""
        self.length = 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row so often."""
        for states in (self.keys, self.values):
            states.change_rows(lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        for states in (self.keys, self.values):
            states.change_rows(lambda part: part.index_select(0, indices.to(part.device)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows that beams continue, in their order."""
        self.batch_select_indices(beam_idx)


def make_cache(layers: int, storage: KVStorage, room: int) -> Cache:
    """Return an empty cache; its buffers have room for so many tokens before they grow."""
    return Cache([StoredLayer(StoredStates(storage, room), StoredStates(storage, room)) for _ in range(layers)])
