"""Cross-entropy that never builds [tokens x vocabulary] logits for more than one chunk: mask first, then chunk.

>>> target, weight = shifted(labels, None, cu_seqlens)                            # doctest: +SKIP
>>> weighted_cross_entropy(hidden, lm_head, target, weight) / weight.sum()        # doctest: +SKIP

Shapes: B rows of L tokens, C channels, V vocabulary, n labeled tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vlm.models.batch import upload

CHUNK = 512  # rows of logits in memory at once: 512 x 92,553 x 4 bytes = 190 MB; in 16 bits, four times as many rows
BLOCK = 16  # rows of logits that a processor's cache holds
SLICE = 8192  # entries of the vocabulary whose gradient is summed at once


def shifted(labels: Tensor, weights: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return target (label of the next token, int64) and weight (float32) of each position, [B, L] each.

    The last position of a row, and of each document of a packed row, has no next token: target -100, weight 0.
    """
    target = F.pad(labels[:, 1:], (0, 1), value=-100)
    if cu_seqlens is not None:
        target = target.clone()
        target[:, upload(cu_seqlens[1:-1].long() - 1, target.device)] = -100
    weight = torch.ones_like(target, dtype=torch.float32) if weights is None else F.pad(weights[:, 1:], (0, 1)).float()
    return target, weight * (target != -100)


def weighted_cross_entropy(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    target: Tensor,
    weight: Tensor,
    chunk: int = CHUNK,
    block: int | None = None,
) -> Tensor:
    """Return the sum over positions of weight * cross-entropy, a float32 scalar; 0 (with a graph) without any label.

    Args:
        hidden: [B, L, C].
        head: maps [n, C] to logits [n, V]. A LossHead computes its gradients together with the loss; any other head
            (adapters, low bits) is called again in the backward pass.
        target: int64 [B, L], already shifted; -100 is masked.
        weight: float32 [B, L].
        chunk: rows of logits in memory at once.
        block: rows that a LossHead computes at a time; None: as suits the device.
    """
    hidden, target, weight = hidden.flatten(0, 1), target.flatten(), weight.flatten()
    rows = (target != -100).nonzero().squeeze(1)
    if len(rows):
        hidden, target, weight = hidden[rows], target[rows], weight[rows]
    else:  # one row of weight 0: a rank without labels also calls the head, as ZeRO-3 gathers on all ranks together
        hidden, target, weight = hidden[:1], torch.zeros_like(target[:1]), torch.zeros_like(weight[:1])

    if isinstance(head, LossHead):
        loss: Tensor = head(hidden, target, weight, chunk, block)
        return loss

    def part(h: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return (F.cross_entropy(head(h).float(), t, reduction="none") * w).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t, w in zip(hidden.split(chunk), target.split(chunk), weight.split(chunk), strict=True):
        total = total + (checkpoint(part, h, t, w, use_reentrant=False) if torch.is_grad_enabled() else part(h, t, w))
    return total


def to_gradient(logits: Tensor, wide: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of weight * cross-entropy; the logits [n, V] are replaced, in place, by its gradient.

    Args:
        logits: [n, V].
        wide: float32 [n, V] to compute in, or `logits` themselves.
        target: int64 [n, 1].
        weight: float32 [n, 1].
    """
    if wide is not logits:
        wide.copy_(logits)
    top = wide.amax(1, keepdim=True)
    right = wide.gather(1, target) - top
    norm = wide.sub_(top).exp_().sum(1, keepdim=True)
    loss = ((norm.log() - right) * weight).sum()
    weight = weight.to(wide.dtype)
    wide.mul_(weight / norm).scatter_add_(1, target, -weight)
    if wide is not logits:
        logits.copy_(wide)
    return loss


class LossHead(nn.Linear):
    """The output head, which also computes the loss: one call for a row, however many labels it has.

    ZeRO-3 gathers the weight at each call of a module: ranks with unequal numbers of calls would wait forever.
    """

    def forward(
        self,
        input: Tensor,
        target: Tensor | None = None,
        weight: Tensor | None = None,
        chunk: int = CHUNK,
        block: int | None = None,
    ) -> Tensor:
        """Return logits [..., V] of hidden states [..., C]; with target and weight [n], the sum of the loss."""
        if target is None or weight is None:
            return super().forward(input)
        block = block or (BLOCK if input.device.type == "cpu" else CHUNK)  # on a GPU each pass costs a launch
        loss: Tensor = LinearCrossEntropy.apply(input, self.weight, target, weight, chunk, block)
        return loss


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of weight * cross-entropy of `hidden @ head.T`, with three matrix products in all and one chunk of logits.

    The gradients are computed while the logits are in memory, and only scaled in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, target: Tensor, weight: Tensor, chunk: int, block: int
    ) -> Tensor:
        """Return the float32 sum for hidden [n, C], head [V, C], target int64 [n], weight float32 [n]."""
        need_hidden, need_head, *_ = ctx.needs_input_grad
        low = head.dtype.itemsize < 4
        chunk *= 4 if low else 1  # each chunk costs a pass over the head's gradient; products are faster
        several = low and len(hidden) > chunk  # then sum in float32: rounding errors grow with their number
        to_hidden = torch.empty_like(hidden) if need_hidden else None
        to_head = torch.zeros_like(head, dtype=torch.float32 if several else head.dtype) if need_head else None
        total = weight.new_zeros(())
        logits = head.new_empty(min(chunk, len(hidden)), len(head))  # one buffer: fresh pages cost as much as a product
        wide = logits.new_empty(min(block, len(logits)), len(head), dtype=torch.float32) if low else None
        for start in range(0, len(hidden), chunk):
            at = slice(start, start + chunk)
            part = torch.mm(hidden[at], head.T, out=logits[: len(hidden[at])])
            for p, t, w in zip(*(x.split(block) for x in (part, target[at, None], weight[at, None])), strict=True):
                total += to_gradient(p, p if wide is None else wide[: len(p)], t, w)
            if to_hidden is not None:
                torch.mm(part, head, out=to_hidden[at])
            if to_head is not None and several:
                for rows, columns in zip(to_head.split(SLICE), part.T.split(SLICE), strict=True):
                    rows += columns @ hidden[at]
            elif to_head is not None:
                to_head.addmm_(part.T, hidden[at])
        del logits, part
        to_head = None if to_head is None else to_head.to(head.dtype)
        ctx.save_for_backward(to_hidden, to_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass left."""
        to_hidden, to_head = ctx.saved_tensors
        scaled = (None if g is None else g.mul_(gradient.to(g.dtype)) for g in (to_hidden, to_head))
        return (*scaled, None, None, None, None)
