"""Attention behind transformers' interface, one name for all cases: `vlm`.

Packed rows say where documents begin by `cu_seqlens`, an explicit argument; they are never inferred from positions
(a fractional step would look like a document boundary). Padded rows carry an explicit mask. No n x n tensor is made
for packs: each document attends within itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "vlm"

PACKED = torch.ones(1, 1, 1, 1)
"""Given as `attention_mask` with packed rows: transformers hands a 4-D mask through and builds none of its own."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seqlens: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention. query [B, H, Lq, D], key and value [B, H_kv, Lk, D] (not repeated) -> [B, Lq, H, D].

    `cu_seqlens` [documents + 1]: row boundaries of the documents in a packed row (B = 1).
    """
    grouped = query.shape[1] != key.shape[1]
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff().tolist()
        documents = zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True)
        parts = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
            for q, k, v in documents
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    # transformers drops the mask only where plain causal is right
    causal = attention_mask is None and query.shape[2] > 1
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, is_causal=causal, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
