"""Which tokens of a packed row each process holds, and which pairs of them a ring computes at each step.

Zigzag, per document: each document is cut into 2W chunks and process r holds chunks r and 2W - 1 - r, so that every
process has the same work under the causal mask. (The published code cuts the whole row: only right for one document.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

PADDING = -1


@dataclass(frozen=True)
class TokenShard:
    """The tokens of a row that one process holds.

    - `places`: int64 [n], the index in the row of each held token, ascending; -1 for padding
    - `borders`: int32 [documents + 1] on the CPU, the `cu_seqlens` that the attention of this layout takes
    """

    places: Tensor
    borders: Tensor

    def take(self, row: Tensor, fill: float) -> Tensor:
        """Select the entries of the held tokens, [1, L, ...] -> [1, n, ...], `fill` for padding; the dtype stays."""
        places = self.places.to(row.device)
        taken = row[:, places.clamp(min=0)]
        taken[:, places == PADDING] = fill
        return taken


def zigzag(cu_seqlens: Tensor, rank: int, size: int) -> TokenShard:
    """Hold two chunks of each document, padded at its end to whole chunks. `borders` cut the held tokens."""
    parts, borders = [], [0]
    for start, end in pairwise(cu_seqlens.tolist()):
        chunk = -(-(end - start) // (2 * size))
        for number in (rank, 2 * size - 1 - rank):
            places = torch.arange(start + number * chunk, start + (number + 1) * chunk)
            parts.append(torch.where(places < end, places, PADDING))
        borders.append(borders[-1] + 2 * chunk)
    return TokenShard(torch.cat(parts), torch.tensor(borders, dtype=torch.int32))


def contiguous(cu_seqlens: Tensor, rank: int, size: int) -> TokenShard:
    """Hold an equal slice of the row, padded at its end by one more document. `borders` cut the whole padded row."""
    borders = cu_seqlens.tolist()
    length = -(-borders[-1] // size)
    places = torch.arange(rank * length, (rank + 1) * length)
    if length * size > borders[-1]:
        borders.append(length * size)
    places = torch.where(places < cu_seqlens[-1].item(), places, PADDING)
    return TokenShard(places, torch.tensor(borders, dtype=torch.int32))


LAYOUTS: dict[str, Callable[[Tensor, int, int], TokenShard]] = {"ring": zigzag, "ulysses": contiguous}
"""By kind of sequence parallelism."""


def owners(cu_seqlens: Tensor, size: int, layout: Callable[[Tensor, int, int], TokenShard]) -> Tensor:
    """Return the process that holds each token of the row, int64 [L] on the CPU."""
    owner = torch.empty(int(cu_seqlens[-1]), dtype=torch.long)
    for rank in range(size):
        places = layout(cu_seqlens, rank, size).places
        owner[places[places != PADDING]] = rank
    return owner


@dataclass(frozen=True)
class RingBlock:
    """Queries and keys to compute: all pairs, or with `causal` (as many of both) those on and below the diagonal."""

    query: slice
    key: slice
    causal: bool

    @property
    def pairs(self) -> int:
        """Return the number of pairs computed."""
        queries, keys = int(self.query.stop - self.query.start), int(self.key.stop - self.key.start)
        return queries * (queries + 1) // 2 if self.causal else queries * keys


def zigzag_blocks(borders: list[int], rank: int, source: int) -> list[RingBlock]:
    """Return what process `rank` computes with the keys of process `source`, one block for each document.

    Of a process before, the first chunk is in the past of both of ours and the last in the future of both; of one
    behind, both chunks lie between ours. So every step but the first has the same work on every process.
    """
    blocks = []
    for start, end in pairwise(borders):
        middle, held = (start + end) // 2, slice(start, end)
        if source == rank:
            blocks.append(RingBlock(held, held, causal=True))
        elif source < rank:
            blocks.append(RingBlock(held, slice(start, middle), causal=False))
        else:
            blocks.append(RingBlock(slice(middle, end), held, causal=False))
    return blocks


def schedule(
    borders: list[int], rank: int, size: int, blocks: Callable[[list[int], int, int], list[RingBlock]] = zigzag_blocks
) -> list[list[RingBlock]]:
    """Return the blocks of each step: at step s a process has the keys of the process s places before it."""
    return [blocks(borders, rank, (rank - step) % size) for step in range(size)]
