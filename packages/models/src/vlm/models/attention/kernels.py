"""Attention of one block of queries and keys with its log-sum-exp, and its gradients under a log-sum-exp over all keys.

On a CPU torch's own flash kernel, in float32, float64 and bfloat16; on CUDA flash-attn (written from its interface,
version 2.8; never run by us). Shapes as in `attention`; the log-sum-exp is [B, H, Lq], float32 or float64.
"""

from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from vlm.core.errors import ConfigError
from vlm.core.extras import install_line
from vlm.models.attention.local import flash_problem


class Kernel(Protocol):
    """Attention of one block; `causal` only with as many queries as keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """Return the output [B, H, Lq, D] and its log-sum-exp [B, H, Lq]."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v.

        `out` and `lse` are over all keys, not one block: so the gradients of all blocks add up to the exact ones.
        """
        ...


class CpuKernel:
    """torch's flash attention for CPUs."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = op(grad, q, k, v, out, lse, 0.0, causal, scale=scale)
        return dq, dk, dv


class FlashKernel:
    """flash-attn, whose tensors are [B, L, H, D]."""

    def __init__(self) -> None:
        self.library = import_module("flash_attn.flash_attn_interface")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out, lse, _ = self.library.flash_attn_func(q, k, v, 0.0, scale, causal, return_attn_probs=True)
        return out.transpose(1, 2), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        grad, q, k, v, out = (t.transpose(1, 2).contiguous() for t in (grad, q, k, v, out))
        grads = [torch.empty_like(t) for t in (q, k, v)]
        self.library._flash_attn_backward(
            grad,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            *grads,
            dropout_p=0.0,
            softmax_scale=scale,
            causal=causal,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        dq, dk, dv = (t.transpose(1, 2) for t in grads)
        return dq, dk, dv


def block_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Return the kernel for such tensors. Raises ConfigError on CUDA without flash-attn or in an unsupported dtype."""
    if device.type == "cpu":
        return CpuKernel()
    if problem := flash_problem(device, dtype):
        raise ConfigError(
            f"attention ring: {problem}",
            expected="flash-attn and weights in bfloat16 or float16 on CUDA; or a CPU",
            fix=f"{install_line('flash')}; and precision: bfloat16",
        )
    return FlashKernel()
