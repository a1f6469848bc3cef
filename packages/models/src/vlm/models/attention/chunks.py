"""Attention of a long chunk of queries to cached keys, without a mask of all queries by all keys.

Shapes as in `local`.
"""

import torch
from torch import Tensor

LONGEST_MASK = 2**26
"""Entries of a mask at most, a byte each: 8,192 queries by 8,192 keys."""


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add a block to the attention over other keys, in place: out [..., n, D], lse [..., n]."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_((lse - total).exp()[..., None]).add_(part * (part_lse - total).exp()[..., None])
    lse.copy_(total)


def continued(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend to all cached keys and causally to the queries' own, on a CPU; both are merged in float32 [B, H, n, D]."""
    cached = key.shape[2] - query.shape[2]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(query, key[:, :, :cached], value[:, :, :cached], 0.0, False, scale=scale)
    own, own_lse = kernel(query, key[:, :, cached:], value[:, :, cached:], 0.0, True, scale=scale)
    exact: Tensor = out.to(lse.dtype)
    merge(exact, lse, own, own_lse)
    return exact.to(query.dtype)
