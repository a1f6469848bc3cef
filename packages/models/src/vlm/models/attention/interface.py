"""Causal attention behind transformers' interface: one function, the backends of `BACKENDS`, chosen by name.

>>> model.set_attention("varlen")        # or "sdpa", "flash_attention_2", "auto"

`cu_seqlens` marks document boundaries in packed rows, as an explicit argument; documents are never inferred from
positions (transformers reads any step other than 1 as a border: with V2PE each image token would be alone, silently).
Shapes as in `local`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.models.attention import local
from vlm.models.attention.chunks import LONGEST_MASK
from vlm.models.attention.local import LOCAL, AttentionBackend, choose
from vlm.models.attention.ring import ring
from vlm.models.attention.segments import Segments
from vlm.models.attention.ulysses import ulysses
from vlm.models.sequence.group import SequenceGroup

NAME = "vlm"
"""The name that transformers knows the function by; the config's `vlm_attention` names the backend that runs."""

PACKED = torch.ones(1, 1, 1, 1)
"""The `attention_mask` of packed rows: transformers passes a 4-D mask through and builds none of its own."""

BACKENDS: dict[str, AttentionBackend] = {
    **LOCAL,
    "ring": AttentionBackend(ring, dense=False),
    "ulysses": AttentionBackend(ulysses, dense=False),
}
"""By name, next to `auto`: see `choose`. The last two are for rows that a group of processes holds."""


def check_name(name: str) -> None:
    """Raise UnknownName for an unknown backend, ConfigError for one that this machine cannot run at all."""
    if name not in ("auto", *BACKENDS):
        raise UnknownName("attention", name, ("auto", *BACKENDS))
    if name == "flash_attention_2":
        local.flash_kernel(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16)


def check_packed(cu_seqlens: Tensor, embeddings: Tensor) -> None:
    """Raise DataError unless `cu_seqlens` cuts the one row of embeddings [1, L, C] into documents."""
    rows, length = embeddings.shape[:2]
    borders = cu_seqlens.tolist()
    if rows != 1 or borders[:1] != [0] or borders[-1] != length or min(cu_seqlens.diff().tolist(), default=0) < 1:
        raise DataError(
            f"cu_seqlens {borders} for {rows} rows of {length} tokens",
            expected=f"one row, and rising borders from 0 to {length}",
        )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seqlens: Tensor | None = None,
    group: SequenceGroup | None = None,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend with the backend of the module's config; transformers calls this in each layer. Returns [B, Lq, H, D].

    With `segments` the documents of a packed row continue from their caches.
    """
    if segments is not None:
        return segments.attend(int(module.layer_idx), query, key, value, scaling).transpose(1, 2), None  # type: ignore[arg-type]
    name = choose(backend_of(module.config), cu_seqlens is not None, query.device, query.dtype)
    mask = attention_mask if cu_seqlens is None else None
    more = {} if group is None else {"group": group}
    return BACKENDS[name].attend(query, key, value, mask, cu_seqlens, scaling, **more).transpose(1, 2), None


def make_mask(
    *,
    config: Any,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Any] | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **rest: Any,
) -> Tensor | None:
    """Make the mask of unpacked rows, once per forward; None where plain causal attention is right.

    A chunk whose mask would be larger than `LONGEST_MASK` gets that of the keys alone [B, Lk].

    `mask_function` is left out on purpose: beside causality it holds the documents that transformers inferred.
    """
    long = 1 < q_length < kv_length == q_offset + q_length and q_length * kv_length > LONGEST_MASK
    if BACKENDS[choose(backend_of(config), False, device, dtype)].dense and not long:
        # transformers forbids the skip for "documents" and for a cache with room ahead; only the latter is real
        skip = allow_is_causal_skip or q_length == kv_length
        if q_length == 1 and attention_mask is not None and torch.device(device).type != "cpu":
            skip = False  # whether the mask is all ones would be asked of the device at each new token
        return sdpa_mask(
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            attention_mask=attention_mask,
            mask_function=causal_mask_function,
            allow_is_causal_skip=skip,
            device=device,
            **rest,
        )
    if q_offset + q_length != kv_length:
        raise ConfigError(
            f"a cache of {kv_length} places for {q_offset + q_length} tokens with attention {backend_of(config)}",
            expected="a cache that grows (transformers' DynamicCache)",
            fix='leave cache_implementation out, or set_attention("sdpa")',
        )
    return None if attention_mask is None or attention_mask.all() else attention_mask.bool()


def backend_of(config: Any) -> str:
    """Return the name of the backend in a language model's configuration."""
    return str(config.vlm_attention)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, make_mask)
