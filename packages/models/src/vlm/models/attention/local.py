"""Attention within one process: the reference, one document at a time, and flash-attn; and which of them runs.

Shapes: B rows, H heads (H_kv of keys and values, not repeated), Lq queries that end where the Lk keys end, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.core.errors import ConfigError
from vlm.core.extras import install_line
from vlm.models.attention.chunks import LONGEST_MASK, continued
from vlm.models.batch import upload


@dataclass(frozen=True)
class AttentionBackend:
    """An attention function and the mask that it takes: `attend(query, key, value, mask, cu_seqlens, scale)`.

    Returns [B, H, Lq, D].

    query [B, H, Lq, D]; key, value [B, H_kv, Lk, D]. `cu_seqlens` int32 [documents + 1] of a packed row (B = 1,
    Lq = Lk), or None. `mask` is None where plain causal is right, else bool: [B, 1, Lq, Lk] what each query sees
    (`dense`), or [B, Lk] which keys are tokens. `ring` and `ulysses` also take the `group` that holds the row.
    """

    attend: Callable[..., Tensor]
    dense: bool


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None = None) -> Tensor:
    """Attend causally; queries and keys end together. A mask is built only for several queries after cached keys.

    Where it would be larger than `LONGEST_MASK`, attention is computed in parts.
    """
    n, m = query.shape[2], key.shape[2]
    if mask is None and 1 < n < m and n * m > LONGEST_MASK:
        if query.device.type == "cpu":
            return continued(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
        out, size = torch.empty_like(query), max(1, LONGEST_MASK // m)
        for start in range(0, n, size):
            end = min(start + size, n)
            seen = slice(m - n + end)
            out[:, :, start:end] = causal(query[:, :, start:end], key[:, :, seen], value[:, :, seen], scale)
        return out
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
    """Compute the reference. A packed row takes a block-diagonal mask of n x n.

    A mask [B, Lk] stands for one that would be larger than `LONGEST_MASK`: then row by row, as `varlen` does.
    """
    if mask is not None and mask.dim() == 2:
        return varlen(query, key, value, mask, None, scale)
    if cu_seqlens is not None:
        index = torch.arange(query.shape[2], device=query.device)
        document = torch.bucketize(index, upload(cu_seqlens[1:-1], index.device), right=True)
        mask = (document[:, None] == document) & (index[:, None] >= index)
    return causal(query, key, value, scale, mask)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, scale: float | None
) -> Tensor:
    """Attend within each document, or within each padded row, without any n x n tensor. Padding gives zeros."""
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
    """Run flash-attn's kernel for segments, with explicit borders. Padding gives zeros.

    Raises:
        ConfigError: no flash-attn, no CUDA device, or neither float16 nor bfloat16.
    """
    kernel = flash_kernel(query.device, query.dtype)
    rows, n, m = query.shape[0], query.shape[2], key.shape[2]
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))  # tokens, row after row
    if cu_seqlens is not None:
        longest = int(cu_seqlens.diff().max())
        borders = upload(cu_seqlens.to(torch.int32), q.device)
        out: Tensor = kernel(q, k, v, borders, borders, longest, longest, softmax_scale=scale, causal=True)
        return out.view(rows, n, *out.shape[1:]).transpose(1, 2)
    if mask is None:  # every row is whole: nothing has to be asked of the device
        cu_q, cu_k = (torch.arange(rows + 1, dtype=torch.int32, device=q.device) * length for length in (n, m))
        out = kernel(q, k, v, cu_q, cu_k, n, m, softmax_scale=scale, causal=True)
        return out.view(rows, n, *out.shape[1:]).transpose(1, 2)
    count_q, count_k = mask[:, -n:].sum(1), mask.sum(1)
    cu_q, cu_k = (F.pad(count.cumsum(0), (1, 0)).to(torch.int32) for count in (count_q, count_k))
    keys = mask.flatten().nonzero().squeeze(1)
    queries = keys if n == m else mask[:, -n:].flatten().nonzero().squeeze(1)
    out = torch.zeros_like(q)
    # n and m bound the lengths; the true ones would have to be read from the device
    out[queries] = kernel(q[queries], k[keys], v[keys], cu_q, cu_k, n, m, softmax_scale=scale, causal=True)
    return out.view(rows, n, *out.shape[1:]).transpose(1, 2)


LOCAL: dict[str, AttentionBackend] = {
    "sdpa": AttentionBackend(sdpa, dense=True),
    "varlen": AttentionBackend(varlen, dense=False),
    "flash_attention_2": AttentionBackend(flash, dense=False),
}
"""Backends for rows that one process holds, by name."""


def flash_problem(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Return why flash-attn cannot run on that device in that dtype; None if it can."""
    if torch.device(device).type != "cuda":
        return f"the tensors are on {torch.device(device).type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the tensors are {str(dtype).removeprefix('torch.')}"
    return None if find_spec("flash_attn") else "the package flash-attn is not installed"


def flash_kernel(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Return `flash_attn_varlen_func`. Raises ConfigError where it cannot run."""
    if problem := flash_problem(device, dtype):
        raise ConfigError(
            f"attention flash_attention_2: {problem}",
            expected="flash-attn, a CUDA device, and weights in bfloat16 or float16",
            fix=f'on a machine with CUDA: {install_line("flash")}; or attention "auto"',
        )
    kernel: Callable[..., Tensor] = import_module("flash_attn").flash_attn_varlen_func
    return kernel


def choose(name: str, packed: bool, device: torch.device | str, dtype: torch.dtype) -> str:
    """Resolve `auto`: flash attention where it can run, else varlen for packed rows and sdpa for padded ones."""
    if name != "auto":
        return name
    if flash_problem(device, dtype) is None:
        return "flash_attention_2"
    return "varlen" if packed else "sdpa"
