"""Whole images from their cells: several shapes in one batch, each encoded as it is.

The cells of all images are one array [cells, 3, S, S]; `grids` [images, 2] says how many (columns, rows) each has.

>>> features = encode_whole(encode, cells, grids)        # [cells, tokens, C], in the cells' order    # doctest: +SKIP
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlm.core.errors import DataError

Grids = Sequence[tuple[int, int]] | Tensor


def as_pairs(grids: Grids) -> list[tuple[int, int]]:
    """Return grids as (columns, rows) pairs of plain numbers."""
    rows = grids.tolist() if isinstance(grids, Tensor) else grids
    return [(int(columns), int(rows)) for columns, rows in rows]


def encode_whole(
    encode: Callable[[Tensor], Tensor], cells: Tensor, grids: Grids, chunk: int | None = None, calls: int = 0
) -> Tensor:
    """Return the features of cells [cells, 3, S, S], each computed within its whole image.

    Images of one shape are encoded together, so that their features do not depend on the images beside them.

    Args:
        encode: images [n, 3, h, w] -> features [n, tokens, C], the tokens row by row.
        cells: the cells of all images, in reading order.
        grids: (columns, rows) of each image.
        chunk: images of one shape that are encoded at once; None for all.
        calls: how often `encode` is called at least: processes that share sliced weights all call it equally often.

    Raises:
        DataError: the grids do not add up to the cells.
    """
    pairs = as_pairs(grids)
    counts = [columns * rows for columns, rows in pairs]
    if sum(counts) != len(cells) or min(counts, default=1) < 1:
        raise DataError(
            f"{len(cells)} cells for grids of {sum(counts)}",
            expected="columns x rows cells for each image",
            fix="pass `image_grids` of exactly the images in `pixel_values`",
        )
    parts, made = cells.split(counts), 0
    found: list[Tensor] = [cells] * len(parts)
    for shape in dict.fromkeys(pairs):
        members = [i for i, pair in enumerate(pairs) if pair == shape]
        step = chunk or len(members)
        for start in range(0, len(members), step):
            some = members[start : start + step]
            features = encode(torch.stack([joined(parts[i], *shape) for i in some]))
            made += 1
            for i, one in zip(some, features, strict=True):
                found[i] = one.reshape(counts[i], -1, one.shape[-1])
    # a call without an image: its features are nobody's, but the graph holds them
    idle = [encode(cells.new_zeros(1, *cells.shape[1:])).sum() for _ in range(calls - made)]
    features = torch.cat(found)
    return features + 0 * torch.stack(idle).sum() if idle else features


def joined(cells: Tensor, columns: int, rows: int) -> Tensor:
    """Return the image [3, rows * S, columns * S] of its cells [rows * columns, 3, S, S]."""
    _, channels, height, width = cells.shape
    image = cells.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return image.reshape(channels, rows * height, columns * width)


def image_shares(grids: Grids, size: int) -> list[range]:
    """Return the images of each of `size` processes: consecutive ones, with about equally many cells."""
    counts = [columns * rows for columns, rows in as_pairs(grids)]
    total, shares, first, done = sum(counts), [], 0, 0
    for rank in range(size):
        end = first
        while end < len(counts) and (rank == size - 1 or done + counts[end] / 2 <= total * (rank + 1) / size):
            done += counts[end]
            end += 1
        shares.append(range(first, end))
        first = end
    return shares


def encoder_calls(grids: Grids, size: int = 1) -> int:
    """Return how often the busiest of `size` processes calls the encoder for a row: at least once, even for text."""
    pairs = as_pairs(grids)
    return max(1, *(len({pairs[i] for i in share}) for share in image_shares(pairs, size)))
