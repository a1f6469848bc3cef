"""Mask first, then chunk: cross-entropy that never builds [tokens x vocabulary] logits for more than one chunk."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256  # rows of logits alive at once: 256 x 92,553 x 4 bytes = 95 MB, three times in the backward pass


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

    hidden [B, L, C]; head maps [n, C] to logits [n, V]; target, weight [B, L] already shifted.
    """
    hidden, target, weight = hidden.flatten(0, 1), target.flatten(), weight.flatten()
    rows = (target != -100).nonzero().squeeze(1)
    if len(rows):
        hidden, target, weight = hidden[rows], target[rows], weight[rows]
    else:  # one row of weight 0: a rank without labels still calls the head, as its peers do (ZeRO-3 gathers together)
        hidden, target, weight = hidden[:1], torch.zeros_like(target[:1]), torch.zeros_like(weight[:1])

    def part(h: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return (F.cross_entropy(head(h).float(), t, reduction="none") * w).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t, w in zip(hidden.split(chunk), target.split(chunk), weight.split(chunk), strict=True):
        total = total + (checkpoint(part, h, t, w, use_reentrant=False) if torch.is_grad_enabled() else part(h, t, w))
    return total
