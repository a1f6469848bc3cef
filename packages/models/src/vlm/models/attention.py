"""Causal attention behind transformers' interface: one function, the backends of `BACKENDS`, chosen by name.

>>> model.set_attention("varlen")        # or "sdpa", "flash_attention_2", "auto"

Packed rows say where documents begin by `cu_seqlens`, an explicit argument; documents are never inferred from positions
(transformers reads any step other than 1 as a border: with V2PE each image token would be alone, silently).

Shapes: B rows, H heads (H_kv of keys and values, not repeated), Lq queries that end where the Lk keys end, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence.ring import ring
from vlm.models.sequence.ulysses import ulysses

NAME = "vlm"
"""What transformers knows the function by; which backend runs stands in the config as `vlm_attention`."""

PACKED = torch.ones(1, 1, 1, 1)
"""Given as `attention_mask` with packed rows: transformers hands a 4-D mask through and builds none of its own."""


@dataclass(frozen=True)
class Backend:
    """`attend(query, key, value, mask, cu_seqlens, scale)` -> [B, H, Lq, D].

    query [B, H, Lq, D]; key, value [B, H_kv, Lk, D]. `cu_seqlens` int32 [documents + 1] of a packed row (B = 1,
    Lq = Lk), or None. `mask` is None where plain causal is right, else bool: [B, 1, Lq, Lk] what each query sees
    (`dense`), or [B, Lk] which keys are tokens. `ring` and `ulysses` also take the `group` that holds the row.
    """

    attend: Callable[..., Tensor]
    dense: bool


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None = None) -> Tensor:
    """Causal where queries and keys end together; a mask is built only for several queries behind cached keys."""
    n, m = query.shape[2], key.shape[2]
    if mask is None and 1 < n < m:
        mask = torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and n > 1,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, scale: float | None
) -> Tensor:
    """The reference. A packed row takes a block-diagonal mask: n x n."""
    if cu_seqlens is not None:
        index = torch.arange(query.shape[2], device=query.device)
        document = torch.bucketize(index, cu_seqlens[1:-1], right=True)
        mask = (document[:, None] == document) & (index[:, None] >= index)
    return causal(query, key, value, scale, mask)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, scale: float | None
) -> Tensor:
    """Each document, or the tokens of each padded row, within itself: never an n x n tensor. Padding gives zeros."""
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff().tolist()
        documents = zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True)
        return torch.cat([causal(q, k, v, scale) for q, k, v in documents], dim=2)
    if mask is None:
        return causal(query, key, value, scale)
    out = torch.zeros_like(query)
    for row, keys in enumerate(mask):
        at, queries = slice(row, row + 1), keys[-query.shape[2] :]
        out[at, :, queries] = causal(query[at, :, queries], key[at, :, keys], value[at, :, keys], scale)
    return out


def flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, scale: float | None
) -> Tensor:
    """flash-attn's kernel for segments, with borders that are always explicit. Padding gives zeros.

    Raises:
        ConfigError: no flash-attn, no CUDA device, or neither float16 nor bfloat16.
    """
    kernel = flash_kernel(query.device, query.dtype)
    rows, n, m = query.shape[0], query.shape[2], key.shape[2]
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))  # tokens of all rows in turn
    if cu_seqlens is not None:
        borders = cu_seqlens.to(torch.int32)
        longest = int(borders.diff().max())
        out = kernel(q, k, v, borders, borders, longest, longest, softmax_scale=scale, causal=True)
        return out.unflatten(0, (rows, n)).transpose(1, 2)
    keys = torch.ones(rows, m, dtype=torch.bool, device=q.device) if mask is None else mask
    queries = keys[:, -n:].flatten()
    count_q, count_k = keys[:, -n:].sum(1), keys.sum(1)
    cu_q, cu_k = (F.pad(count.cumsum(0), (1, 0)).to(torch.int32) for count in (count_q, count_k))
    longest_q, longest_k = int(count_q.max()), int(count_k.max())
    k, v = k[keys.flatten()], v[keys.flatten()]
    out = torch.zeros_like(q)
    out[queries] = kernel(q[queries], k, v, cu_q, cu_k, longest_q, longest_k, softmax_scale=scale, causal=True)
    return out.unflatten(0, (rows, n)).transpose(1, 2)


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(sdpa, dense=True),
    "varlen": Backend(varlen, dense=False),
    "flash_attention_2": Backend(flash, dense=False),
    "ring": Backend(ring, dense=False),
    "ulysses": Backend(ulysses, dense=False),
}
"""By name, next to `auto`: see `choose`. The last two are for rows that a group of processes holds: see `sequence`."""


def flash_problem(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why flash-attn cannot run there; None if it can."""
    if torch.device(device).type != "cuda":
        return f"the tensors are on {torch.device(device).type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the tensors are {str(dtype).removeprefix('torch.')}"
    return None if find_spec("flash_attn") else "the package flash-attn is not installed"


def flash_kernel(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """`flash_attn_varlen_func`. Raises ConfigError where it cannot run."""
    if problem := flash_problem(device, dtype):
        raise ConfigError(
            f"attention flash_attention_2: {problem}",
            expected="flash-attn, a CUDA device, and weights in bfloat16 or float16",
            fix='pip install "farlens-models[flash]" on a machine with CUDA; or attention "auto"',
        )
    return import_module("flash_attn").flash_attn_varlen_func


def choose(name: str, packed: bool, device: torch.device | str, dtype: torch.dtype) -> str:
    """What runs: `auto` is flash attention where it can run, else varlen for packed rows and sdpa for padded ones."""
    if name != "auto":
        return name
    if flash_problem(device, dtype) is None:
        return "flash_attention_2"
    return "varlen" if packed else "sdpa"


def check_name(name: str) -> None:
    """Raise UnknownName for an unknown backend, ConfigError for one that this machine cannot run at all."""
    if name not in ("auto", *BACKENDS):
        raise UnknownName("attention", name, ("auto", *BACKENDS))
    if name == "flash_attention_2":
        flash_kernel(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16)


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
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; -> [B, Lq, H, D]."""
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
    """What transformers calls once per forward of unpacked rows: None where plain causal is right.

    `mask_function` is left out on purpose: beside causality it holds the documents that transformers saw in positions.
    """
    if BACKENDS[choose(backend_of(config), False, device, dtype)].dense:
        return sdpa_mask(
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            attention_mask=attention_mask,
            mask_function=causal_mask_function,
            # transformers forbids the skip for "documents" and for a cache with room ahead; only the latter is real
            allow_is_causal_skip=allow_is_causal_skip or q_length == kv_length,
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
    """Name of the backend of a language model's configuration."""
    return config.vlm_attention


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, make_mask)
