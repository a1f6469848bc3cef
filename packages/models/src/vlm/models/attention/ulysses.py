"""Ulysses: processes exchange tokens for heads, attend to whole documents, and exchange back (arXiv 2309.14509).

Each process then has few heads of all tokens. There are two exchanges per layer; the number of processes must divide
that of query heads.

Shapes: H query heads, H_kv key heads, n tokens of this process, D head size; `size` processes.
"""

import math

from torch import Tensor

from vlm.core.errors import ConfigError
from vlm.models.attention.local import LOCAL, choose
from vlm.models.attention.ring import require_group
from vlm.models.sequence.group import SequenceGroup


def ulysses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float | None,
    group: SequenceGroup | None = None,
) -> Tensor:
    """Compute this process's part of the attention of a packed row in contiguous slices; a backend of `attention`.

    query [1, H, n, D]; key, value [1, H_kv, n, D] of the tokens of `sharding.contiguous`, `cu_seqlens` its borders (of
    the whole row). Each key head is repeated as often as needed for every process to get equally many.

    Raises:
        ConfigError: no group, a padded batch, or heads that do not divide.
    """
    group, borders = require_group("ulysses", group, cu_seqlens)
    copies = key_copies(query.shape[1], key.shape[1], group.size)
    key, value = (t.repeat_interleave(copies, dim=1) for t in (key, value))
    backend = LOCAL[choose("auto", True, query.device, query.dtype)]
    whole = backend.attend(*(heads_of_all_tokens(t, group) for t in (query, key, value)), None, borders, scale)
    return tokens_of_all_heads(whole, group)


def heads_of_all_tokens(held: Tensor, group: SequenceGroup) -> Tensor:
    """Exchange tokens for heads, differentiably: [1, H, n, D] of our tokens -> [1, H / size, n * size, D]."""
    one = [1] * group.size
    parts = group.exchange(held[0].unflatten(0, (group.size, -1)), one, one)  # [size, H / size, n, D], by process
    return parts.transpose(0, 1).flatten(1, 2)[None]


def tokens_of_all_heads(whole: Tensor, group: SequenceGroup) -> Tensor:
    """Exchange heads for tokens, differentiably: [1, H / size, n * size, D] -> [1, H, n, D] of our tokens."""
    one = [1] * group.size
    parts = whole[0].unflatten(1, (group.size, -1)).transpose(0, 1)  # [size, H / size, n, D], by process
    return group.exchange(parts, one, one).flatten(0, 1)[None]


def key_copies(heads: int, key_heads: int, size: int) -> int:
    """Return how often each key head is repeated: as few times as give every process equally many.

    Raises:
        ConfigError: `size` does not divide the query heads.
    """
    if heads % size:
        raise ConfigError(
            f"sequence_parallel kind ulysses over {size} processes with {heads} attention heads",
            expected=f"a size that divides {heads}",
            fix="use kind: ring, which takes any size, or another size",
        )
    return size // math.gcd(size, key_heads)
