"""Which samples share a row: best-fit-decreasing within a look-ahead window, or the published buffer."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from vlm.core.errors import DataError


def _check(lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int) -> None:
    if len(lengths) != len(tiles):
        raise DataError(f"{len(lengths)} lengths but {len(tiles)} tile counts", expected="one of each per sample")
    for i, (length, n_tiles) in enumerate(zip(lengths, tiles, strict=True)):
        if length > max_tokens or n_tiles > max_tiles:
            raise DataError(
                f"sample {i} has {length} tokens and {n_tiles} tiles",
                expected=f"at most {max_tokens} tokens and {max_tiles} tiles, the limits of a pack",
                fix="truncate or drop it before packing, or raise the limits",
            )


def pack(
    lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int, window: int = 1000
) -> list[list[int]]:
    """Indices of the samples of each pack (ours).

    Each `window` of consecutive samples is packed on its own, longest first, each into the pack that it fills best
    under both limits. Deterministic; every sample is in exactly one pack. O(n log n) for given `max_tiles`.

    >>> pack([5, 3, 6, 2], [1, 1, 1, 1], max_tokens=8, max_tiles=4)
    [[2, 3], [0, 1]]

    Raises:
        DataError: a sample that fits in no pack; names it and the limits.
    """
    _check(lengths, tiles, max_tokens, max_tiles)
    packs: list[list[int]] = []
    for first in range(0, len(lengths), window):
        # free tiles -> sorted (free tokens, pack): the best fit is the smallest sufficient entry of any list
        free: dict[int, list[tuple[int, int]]] = {}
        for i in sorted(range(first, min(first + window, len(lengths))), key=lambda i: (-lengths[i], -tiles[i], i)):
            best = None
            for free_tiles, bins in free.items():
                at = bisect_left(bins, (lengths[i], -1))
                if free_tiles >= tiles[i] and at < len(bins):
                    fit = (bins[at][0], free_tiles, bins[at][1])
                    best = fit if best is None else min(best, fit)
            if best is None:
                best = (max_tokens, max_tiles, len(packs))
                packs.append([])
            else:
                bins = free[best[1]]
                bins.pop(bisect_left(bins, (best[0], best[2])))
                if not bins:
                    del free[best[1]]
            free_tokens, free_tiles, chosen = best
            packs[chosen].append(i)
            insort(free.setdefault(free_tiles - tiles[i], []), (free_tokens - lengths[i], chosen))
    return packs


def pack_greedy(
    lengths: Sequence[int], tiles: Sequence[int], max_tokens: int, max_tiles: int, buffer_size: int = 20
) -> list[list[int]]:
    """Indices of the samples of each pack, as the published packed dataset forms and emits them.

    Open packs are kept in order of tiles, most first; a sample joins the first that has room. A full pack is emitted;
    of more than `buffer_size` open packs the one with most tiles is. Samples are not split (published
    `allow_overflow=False`); in published runs a text-only sample counts one dummy tile. Fact sheet v2pe, C.8.

    Raises:
        DataError: a sample that fits in no pack (the published code logs and drops it).
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
