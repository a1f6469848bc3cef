"""Rotation and normalization on a CPU, in blocks that stay in its cache: faster on long prompts, to the same bits.

A float32 copy of the activations of a whole prompt does not fit into a cache, and each operation then reads and writes
main memory. Where gradients are wanted, or on another device, the whole is computed in one piece.

Shapes: B rows of L tokens, H heads of size D, C channels.
"""

import torch
from torch import Tensor

CACHED = 1 << 18
"""Elements of a block: 1 MB of float32."""


ROTATED, NORMED = 1 << 17, 1 << 21
"""Elements from which blocks are faster."""


def pays(x: Tensor, elements: int) -> bool:
    """Return whether blocks may be used and are faster: a CPU, no gradients, that many elements.

    A subclass, such as the tensors without numbers that a plan runs on, is computed in one piece, as on a GPU.
    """
    return type(x) is Tensor and x.device.type == "cpu" and not torch.is_grad_enabled() and x.numel() >= elements


def rotated(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x [B, H, L, D] rotated in the dtype of the tables, cast to `dtype`.

    Args:
        x: queries or keys.
        cos: table [B or 1, L, D], whose two halves are equal.
        sin: the like.
        dtype: of the result.
    """
    half, length = x.shape[-1] // 2, x.shape[-2]
    step = max(1, CACHED * length // max(1, x.numel()))
    out = torch.empty_like(x, dtype=dtype)
    for start in range(0, length, step):
        at = slice(start, start + step)
        block = x[..., at, :].to(torch.promote_types(x.dtype, cos.dtype))
        first, second = block[..., :half], block[..., half:]
        c, s = cos[:, None, at, :half], sin[:, None, at, :half]
        out[..., at, :half] = first * c - second * s
        out[..., at, half:] = second * c + first * s
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x [..., C] over the root of its mean square, in float32, cast to the dtype of x and times `weight`."""
    if not pays(x, NORMED):
        return _rms_norm(x, weight, eps)
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, CACHED // rows.shape[-1])
    out = torch.empty(rows.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
    for start in range(0, len(rows), step):
        out[start : start + step] = _rms_norm(rows[start : start + step], weight, eps)
    return out.view(x.shape)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    floats = x.to(torch.float32)
    return weight * (floats * torch.rsqrt(floats.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
