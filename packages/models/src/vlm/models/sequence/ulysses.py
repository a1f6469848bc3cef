"""Ulysses: processes exchange tokens for heads, attend to whole documents with few heads each, and exchange back
(arXiv 2309.14509). Two exchanges a layer, but no more processes than query heads, and a number that divides them.

The exchanges are DeepSpeed's, which asks for as many key heads as processes or more; repeating them is ours.
"""

import math

from torch import Tensor

from vlm.core.errors import ConfigError
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence.ring import spread_only


def ulysses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float | None,
    group: SequenceGroup | None = None,
) -> Tensor:
    """This process's part of the attention of a packed row in contiguous slices; a backend of `attention`.

    query [1, H, n, D]; key, value [1, H_kv, n, D] of the tokens of `layout.contiguous`, `cu_seqlens` its borders (of
    the whole row). Each key head is repeated as often as needed for every process to get equally many. DeepSpeed's
    communication has to be initialized, as it is once there is an engine.

    Raises:
        ConfigError: no group, a padded batch, or heads that do not divide.
    """
    from deepspeed.sequence.layer import DistributedAttention

    from vlm.models.attention import BACKENDS, choose

    group, borders = spread_only("ulysses", group, cu_seqlens)
    copies = key_copies(query.shape[1], key.shape[1], group.size)
    key, value = (t.repeat_interleave(copies, dim=1) for t in (key, value))
    backend, borders = BACKENDS[choose("auto", True, query.device, query.dtype)], borders.to(query.device)

    def whole(*qkv: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in qkv)
        return backend.attend(q, k, v, None, borders, scale).transpose(1, 2)

    exchanged = DistributedAttention(whole, group.handle, scatter_idx=2, gather_idx=1)  # tensors [1, n, heads, D]
    return exchanged(*(t.transpose(1, 2) for t in (query, key, value)), 0).transpose(1, 2)


def key_copies(heads: int, key_heads: int, size: int) -> int:
    """How often each key head is repeated: the fewest that give every process as many, and the ones its queries use.

    Raises ConfigError unless `size` divides the query heads.
    """
    if heads % size:
        raise ConfigError(
            f"sequence_parallel kind ulysses over {size} processes with {heads} attention heads",
            expected=f"a size that divides {heads}",
            fix="use kind: ring, which takes any size, or another size",
        )
    return size // math.gcd(size, key_heads)
