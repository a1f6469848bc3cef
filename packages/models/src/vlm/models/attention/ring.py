"""Ring attention: each process keeps its queries, and the keys and values go around (arXiv 2310.01889).

Exact, forward and backward: blocks are merged by their log-sum-exp in float32 (float64 for float64 tensors), and
recomputed in the backward pass, in which the gradients of keys and values go around with them. The next transfer is
posted before the current block is computed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm.core.errors import ConfigError
from vlm.models.attention.chunks import merge
from vlm.models.attention.kernels import block_kernel
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence.sharding import RingBlock, schedule


def ring(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float | None,
    group: SequenceGroup | None = None,
) -> Tensor:
    """Compute this process's part of the attention of a packed row in the zigzag layout; a backend of `attention`.

    query [1, H, n, D]; key, value [1, H_kv, n, D] of the tokens of `sharding.zigzag`, `cu_seqlens` its borders.

    Raises:
        ConfigError: no group, a padded batch, or no kernel for the device.
    """
    group, borders = require_group("ring", group, cu_seqlens)
    steps = schedule(borders.tolist(), group.rank, group.size)
    return ring_attention(query, key, value, steps, group, scale)


def require_group(name: str, group: SequenceGroup | None, cu_seqlens: Tensor | None) -> tuple[SequenceGroup, Tensor]:
    """Return the group and the borders. Raises ConfigError where one is missing."""
    if group is None or cu_seqlens is None:
        raise ConfigError(
            f"attention {name} for {'a padded batch' if group else 'a row that one process holds'}",
            expected="a packed row (cu_seqlens) that a group of processes holds",
            fix='train with `sequence_parallel` in the recipe, or set_attention("auto")',
        )
    return group, cu_seqlens


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    steps: list[list[RingBlock]],
    group: SequenceGroup,
    scale: float | None = None,
) -> Tensor:
    """Attend to the keys of all processes, one step each; return [1, H, n, D].

    `steps[s]` are the blocks to compute with the keys of the process s places before. The first step must reach every
    query.
    """
    out: Tensor = RingAttention.apply(
        query, key, value, steps, group, query.shape[-1] ** -0.5 if scale is None else scale
    )
    return out


class RingAttention(torch.autograd.Function):
    """See `ring_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        steps: list[list[RingBlock]],
        group: SequenceGroup,
        scale: float,
    ) -> Tensor:
        """Merge the attention over the keys of each step; [1, H, n, D]."""
        kernel = block_kernel(query.device, query.dtype)
        exact = torch.promote_types(query.dtype, torch.float32)
        out = torch.zeros_like(query, dtype=exact, memory_format=torch.contiguous_format)
        lse = torch.full(query.shape[:-1], -torch.inf, dtype=exact, device=query.device)
        held = torch.stack([key, value])
        for step, blocks in enumerate(steps):
            arrived = group.pass_on(held) if step + 1 < len(steps) else None
            for b in blocks:
                k, v = held[:, :, :, b.key]
                part, part_lse = kernel.forward(query[:, :, b.query], k, v, b.causal, scale)
                merge(out[:, :, b.query], lse[:, :, b.query], part, part_lse)
            if arrived is not None:
                held = arrived()
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.steps, ctx.group, ctx.scale = steps, group, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute each block; the gradients of keys and values return to their process in the last step."""
        query, key, value, out, lse = ctx.saved_tensors
        kernel, group, last = block_kernel(query.device, query.dtype), ctx.group, len(ctx.steps) - 1
        grad_query, held = torch.zeros_like(query, dtype=lse.dtype), torch.stack([key, value])
        arrived_grads = None
        for step, blocks in enumerate(ctx.steps):
            arrived = group.pass_on(held) if step < last else None
            grads = torch.zeros_like(held, dtype=lse.dtype)  # of the keys held now, from our queries
            for b in blocks:
                k, v = held[:, :, :, b.key]
                q, o, g, s = (t[:, :, b.query] for t in (query, out, grad, lse))
                dq, dk, dv = kernel.backward(g, q, k, v, o, s.contiguous(), b.causal, ctx.scale)
                grad_query[:, :, b.query] += dq
                grads[0, :, :, b.key] += dk
                grads[1, :, :, b.key] += dv
            if arrived_grads is not None:
                grads += arrived_grads()  # from the queries of the processes before us
            if last:
                arrived_grads = group.pass_on(grads)
            if arrived is not None:
                held = arrived()
        if arrived_grads is not None:
            grads = arrived_grads()  # back on their process
        grad_key, grad_value = grads.to(key.dtype)
        return grad_query.to(query.dtype), grad_key, grad_value, None, None, None
