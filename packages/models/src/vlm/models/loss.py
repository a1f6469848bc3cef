"""Mask first, then chunk: cross-entropy that never builds [tokens x vocabulary] logits for more than one chunk."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # rows of logits alive at once: 512 x 92,553 x 4 bytes = 190 MB


def shifted(labels: Tensor, weights: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """The target and weight of each position: the label of its successor, [B, L] each.

    The last position of a row, and of each document of a packed row, has no successor: target -100, weight 0.
    """
    target = F.pad(labels[:, 1:], (0, 1), value=-100)
    if cu_seqlens is not None:
        target = target.clone()
        target[:, cu_seqlens[1:-1].long() - 1] = -100
    weight = torch.ones_like(target, dtype=torch.float32) if weights is None else F.pad(weights[:, 1:], (0, 1)).float()
    return target, weight * (target != -100)


def weighted_cross_entropy(
    hidden: Tensor, head: Callable[[Tensor], Tensor], target: Tensor, weight: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Sum over positions of weight * cross-entropy, float32 scalar; 0 (with a graph) where no position has a label.

    hidden [B, L, C]; head maps [n, C] to logits [n, V]; target, weight [B, L] already shifted. A LossHead makes its
    gradients beside the loss; any other head (adapters, low bits) is called again in the backward pass.
    """
    hidden, target, weight = hidden.flatten(0, 1), target.flatten(), weight.flatten()
    rows = (target != -100).nonzero().squeeze(1)
    if len(rows):
        hidden, target, weight = hidden[rows], target[rows], weight[rows]
    else:  # one row of weight 0: a rank without labels still calls the head, as its peers do (ZeRO-3 gathers together)
        hidden, target, weight = hidden[:1], torch.zeros_like(target[:1]), torch.zeros_like(weight[:1])

    if isinstance(head, LossHead):
        return head(hidden, target, weight, chunk)

    def part(h: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return (F.cross_entropy(head(h).float(), t, reduction="none") * w).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t, w in zip(hidden.split(chunk), target.split(chunk), weight.split(chunk), strict=True):
        total = total + (checkpoint(part, h, t, w, use_reentrant=False) if torch.is_grad_enabled() else part(h, t, w))
    return total


class LossHead(nn.Linear):
    """The output head, which also makes the loss: one call for a row, however many labels it has. (ZeRO-3 gathers the
    weight at each call of a module: ranks that call it unequally often would wait for each other for ever.)"""

    def forward(
        self, input: Tensor, target: Tensor | None = None, weight: Tensor | None = None, chunk: int = CHUNK
    ) -> Tensor:
        """Logits [..., V] of hidden states [..., C]; with target and weight [n], the sum of weight * cross-entropy."""
        if target is None or weight is None:
            return super().forward(input)
        return LinearCrossEntropy.apply(input, self.weight, target, weight, chunk)


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of weight * cross-entropy of `hidden @ head.T`: three products in all and one chunk of logits, since the
    gradients are made while the logits are there, and only scaled in the backward pass.

    hidden [n, C], head [V, C], target [n] int64, weight [n] float32; float32 scalar.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor, chunk: int) -> Tensor:
        need_hidden, need_head, *_ = ctx.needs_input_grad
        to_hidden = torch.empty_like(hidden) if need_hidden else None
        to_head = torch.zeros_like(head) if need_head else None
        total = weight.new_zeros(())
        room = head.new_empty(
            min(chunk, len(hidden)), len(head)
        )  # one for all chunks: fresh pages cost as a product does
        for rows in torch.arange(len(hidden), device=hidden.device).split(chunk):
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            h, t, w = hidden[at], target[at, None], weight[at, None]
            logits = torch.mm(h, head.T, out=room[: len(h)]).float()
            top = logits.amax(1, keepdim=True)
            right = logits.gather(1, t) - top
            share = logits.sub_(top).exp_()
            norm = share.sum(1, keepdim=True)
            total += ((norm.log() - right) * w).sum()
            share.mul_(w / norm).scatter_add_(1, t, -w)  # from here on the gradient of the logits
            share = share.to(head.dtype)
            if to_hidden is not None:
                torch.mm(share, head, out=to_hidden[at])
            if to_head is not None:
                to_head.addmm_(share.T, h)
        ctx.save_for_backward(to_hidden, to_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_head = ctx.saved_tensors
        scaled = (None if g is None else g.mul_(gradient.to(g.dtype)) for g in (to_hidden, to_head))
        return (*scaled, None, None, None)
