"""Which samples share a row (best fit decreasing, or the published buffer), and which group of processes runs it."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from vlm.core.errors import DataError

BOTH = 4096
"""Most samples that are packed together where both limits may bind: there each sample looks at every open pack."""


def _check(lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int) -> None:
    if len(lengths) != len(tiles):
        raise DataError(f"{len(lengths)} lengths but {len(tiles)} tile counts", expected="one of each per sample")
    if len(lengths) == 0 or (max(lengths) <= max_tokens and max(tiles) <= max_tiles):
        return
    i = next(i for i, n in enumerate(lengths) if n > max_tokens or tiles[i] > max_tiles)
    raise DataError(
        f"sample {i} has {lengths[i]} tokens and {tiles[i]} tiles",
        expected=f"at most {max_tokens} tokens and {max_tiles} tiles, the limits of a pack",
        fix="truncate or drop it before packing, or raise the limits",
    )


def pack(
    lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int, window: int = 1000
) -> list[list[int]]:
    """Return the indices of the samples of each pack (ours).

    Each `window` of consecutive samples is packed on its own, longest first, each into the pack that it fills best.
    Where the limit of tiles may bind too, size and fit count both limits, the published buffer is tried as well, and at
    most BOTH samples are packed together. Deterministic; every sample is in exactly one pack; O(n log n).

    Args:
        lengths: Tokens of each sample.
        tiles: Tiles of each sample.
        max_tokens: Limit of a pack.
        max_tiles: Limit of a pack.
        window: Samples that are looked at together.

    Raises:
        DataError: A sample fits in no pack; the message names it and the limits.

    >>> pack([5, 3, 6, 2], [1, 1, 1, 1], max_tokens=8, max_tiles=4)
    [[2, 3], [0, 1]]
    """
    _check(lengths, tiles, max_tokens, max_tiles)
    all_lengths, all_tiles = np.asarray(lengths, np.int64), np.asarray(tiles, np.int64)
    packs: list[list[int]] = []
    for first in range(0, len(lengths), window):
        n, t = all_lengths[first : first + window], all_tiles[first : first + window]
        # with at most r tiles a token, a pack of max_tokens holds at most r * max_tokens tiles
        if (t * max_tokens <= n * max_tiles).all():
            packs += _by_tokens(n, t, max_tokens, first)
            continue
        for part in range(0, len(n), BOTH):
            some, their = n[part : part + BOTH], t[part : part + BOTH]
            # two limits that bind have no order that is best everywhere: whichever needs fewer packs
            buffered = pack_greedy(some.tolist(), their.tolist(), max_tokens, max_tiles)
            found = min(_by_both(some, their, max_tokens, max_tiles), buffered, key=len)
            packs += [[first + part + i for i in members] for members in found]
    return packs


def _by_tokens(lengths: np.ndarray, tiles: np.ndarray, max_tokens: int, first: int) -> list[list[int]]:
    """Pack by tokens alone, best fit decreasing: the best fit is the smallest sufficient entry of a sorted list.

    An entry is (free tokens << 32) + pack: one integer compares and sorts faster than a tuple. The roomiest pack is
    kept apart, because most samples go there.
    """
    order = np.lexsort((-tiles, -lengths))
    packs: list[list[int]] = []
    others, roomiest, number = [-1], -1, 0xFFFFFFFF
    for i, need in zip((order + first).tolist(), (lengths[order] << 32).tolist(), strict=True):
        if need <= others[-1]:
            left = others.pop(at := bisect_left(others, need)) - need
            insort(others, left, 0, at)
            packs[left & number].append(i)
            continue
        if need > roomiest:
            if packs:
                others.append(roomiest)
            roomiest = (max_tokens << 32) + len(packs)
            packs.append([])
        roomiest -= need
        packs[roomiest & number].append(i)
        if roomiest < others[-1]:
            insort(others, roomiest)
            roomiest = others.pop()
    return packs


def _by_both(lengths: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int) -> list[list[int]]:
    """Pack the largest share of tokens plus tiles first, each where the free room has most nearly its proportions."""
    items = np.stack([lengths / max_tokens, tiles / max_tiles], axis=1)
    sizes = np.stack([lengths, tiles], axis=1).tolist()
    packs: list[list[int]] = []
    free_tokens, free_tiles = np.empty((2, len(lengths)), np.int64)
    directions = np.empty((len(lengths), 2))  # unit vectors of the free shares
    for i in np.argsort(-items.sum(1), kind="stable").tolist():
        n, t = sizes[i]
        fits = np.flatnonzero((free_tokens[: len(packs)] >= n) & (free_tiles[: len(packs)] >= t))
        if len(fits):
            k = int(fits[(directions[fits] @ items[i]).argmax()])
        else:
            k = len(packs)
            packs.append([])
            free_tokens[k], free_tiles[k] = max_tokens, max_tiles
        packs[k].append(i)
        free_tokens[k] -= n
        free_tiles[k] -= t
        share = free_tokens[k] / max_tokens, free_tiles[k] / max_tiles
        directions[k] = np.divide(share, math.hypot(*share) or 1)
    return packs


def pack_greedy(
    lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int, buffer_size: int = 20
) -> list[list[int]]:
    """Return the indices of the samples of each pack, as the published packed dataset forms and emits them.

    Open packs are kept in order of tiles, most first; a sample joins the first that has room. A full pack is emitted.
    With more than `buffer_size` open packs, the one with most tiles is emitted. Samples are not split (published
    `allow_overflow=False`); in published runs a text-only sample counts one dummy tile. Fact sheet v2pe, C.8.

    Raises:
        DataError: A sample fits in no pack (the published code logs and drops it).

    >>> pack_greedy([5, 3, 6, 2], [1, 1, 1, 1], max_tokens=8, max_tiles=4)
    [[0, 1], [2, 3]]
    """
    _check(lengths, tiles, max_tokens, max_tiles)
    emitted: list[list[int]] = []
    open_packs: list[tuple[int, int, list[int]]] = []  # tiles, tokens, samples
    for i, (length, n_tiles) in enumerate(zip(lengths, tiles, strict=True)):
        room = (k for k, (t, n, _) in enumerate(open_packs) if t + n_tiles <= max_tiles and n + length <= max_tokens)
        found = next(room, None)
        t, n, samples = (0, 0, []) if found is None else open_packs.pop(found)
        t, n, samples = t + n_tiles, n + length, [*samples, i]
        if n == max_tokens or t == max_tiles:
            emitted.append(samples)
            continue
        # behind the packs with as many tiles, as published
        open_packs.insert(sum(other >= t for other, _, _ in open_packs), (t, n, samples))
        if len(open_packs) > buffer_size:
            emitted.append(open_packs.pop(0)[2])
    return emitted + [samples for _, _, samples in open_packs]


def pack_step(
    lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int, *, groups: int, packing: str
) -> list[list[int]]:
    """Return the indices of the samples of each row of a training step that `groups` groups of processes share (ours).

    All groups run as many rows as the busiest, and under ZeRO-3 each row gathers all weights. So `best_fit` needs the
    fewest rows of a group that the limits allow, and among those the shortest longest row (to about 1 %): a limit
    beyond what a step needs leaves no group without work. One group packs its rows as full as they get.

    Args:
        lengths: Tokens of each sample.
        tiles: Tiles of each sample.
        max_tokens: Limit of a row.
        max_tiles: Limit of a row.
        groups: Groups of processes; each row is run by one.
        packing: `best_fit`, `greedy` (the published buffer, whatever the groups), or `none`: each sample has a row.

    Raises:
        DataError: A sample fits in no row; the message names it and the limits.

    >>> pack_step([5, 3, 6, 2], [1, 1, 1, 1], 16, 4, groups=2, packing="best_fit")
    [[2, 3], [0, 1]]
    """
    if packing == "none":
        return [[i] for i in range(len(lengths))]
    if packing == "greedy":
        return pack_greedy(lengths, tiles, max_tokens, max_tiles)
    rows = pack(lengths, tiles, max_tokens, max_tiles, len(lengths) or 1)
    if groups == 1 or not rows:
        return rows
    most = -(-len(rows) // groups) * groups
    least = max(*lengths, -(-sum(lengths) // most))
    while max_tokens - least > least // 100:
        middle = (least + max_tokens) // 2
        found = pack(lengths, tiles, middle, max_tiles, len(lengths))
        if len(found) <= most:
            rows, max_tokens = found, middle
        else:
            least = middle + 1
    return rows


def deal(loads: Sequence[int], groups: int) -> list[list[int]]:
    """Return the indices of the rows of each group: longest first, each to the group with the fewest tokens so far.

    No group gets more rows than an even share, rounded up: the others would have to run as many.

    >>> deal([9, 2, 2, 2], groups=2)
    [[0, 3], [1, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(groups)]
    sums, most = [0] * groups, -(-len(loads) // groups)
    for i in sorted(range(len(loads)), key=lambda i: -loads[i]):
        group = min((g for g in range(groups) if len(dealt[g]) < most), key=sums.__getitem__)
        sums[group] += loads[i]
        dealt[group].append(i)
    return dealt
