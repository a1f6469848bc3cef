"""Best-fit-decreasing packs against the published buffer, knapsack windows and padding; 20,000 lengths, cap 16,384.

Lengths are log-normal (median 1,097 tokens), a tile each that cannot bind. The buffer is V2PE's of 20 open packs (our
`pack_greedy`, equal to the published one on its golden cases), lengths alone, without the deep copies of the published
code. The knapsack is nanoVLM's as its authors describe it ("Efficient MultiModal Data Pipeline", and Eagle 2): windows
of 1,024 rows of tokens, longest first, each into the lightest of ceil(tokens / cap) + 5 knapsacks that has room.
Companion: fill, and whether workers that pack a window each give the packs of one process.
"""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
from harness import paired, report

from vlm.core.sample.packing import pack, pack_greedy

N, CAP, WINDOW, ROWS = 20_000, 16_384, 1_000, 1_024


def knapsacks(lengths: list[int], cap: int) -> list[list[int]]:
    """The packs of one window after another; a window ends when its tokens would fill ROWS rows."""
    packs: list[list[int]] = []
    window: list[int] = []
    tokens = 0
    for i, length in enumerate(lengths):
        window.append(i)
        tokens += length
        if tokens >= cap * ROWS or i == len(lengths) - 1:
            packs += balanced(window, lengths, cap)
            window, tokens = [], 0
    return packs


def balanced(window: list[int], lengths: list[int], cap: int) -> list[list[int]]:
    loads = [0] * (-(-sum(lengths[i] for i in window) // cap) + 5)
    groups: list[list[int]] = [[] for _ in loads]
    for i in sorted(window, key=lambda i: -lengths[i]):
        by_load = sorted(range(len(loads)), key=loads.__getitem__)
        chosen = next((k for k in by_load if loads[k] + lengths[i] <= cap), None)
        if chosen is None:
            chosen = len(loads)
            loads.append(0)
            groups.append([])
        loads[chosen] += lengths[i]
        groups[chosen].append(i)
    return [group for group in groups if group]


def window_packs(first: int, lengths: list[int]) -> list[list[int]]:
    return [[first + i for i in p] for p in pack(lengths, [1] * len(lengths), CAP, 10**6, WINDOW)]


def same_with_workers(lengths: list[int]) -> bool:
    """Windows packed by one, two and three processes."""
    alone = pack(lengths, [1] * N, CAP, 10**6, WINDOW)
    starts = range(0, N, WINDOW)
    for workers in (1, 2, 3):
        with ProcessPoolExecutor(workers) as pool:
            parts = pool.map(window_packs, starts, [lengths[first : first + WINDOW] for first in starts])
            if [p for part in parts for p in part] != alone:
                return False
    return True


def main() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(7, 1, N), 16, CAP).astype(int).tolist()
    tiles, rows = [1] * N, []

    def ours():
        return pack(lengths, tiles, CAP, 10**6, N)

    peers = {
        "greedy buffer of 20": (lambda: pack_greedy(lengths, tiles, CAP, 10**6, 20), 9),
        "knapsack windows": (lambda: knapsacks(lengths, CAP), 3),
    }

    def fill(packs: list[list[int]]) -> float:
        assert sorted(i for p in packs for i in p) == list(range(N))
        assert all(sum(lengths[i] for i in p) <= CAP for p in packs)
        return sum(lengths) / (len(packs) * CAP)

    for name, (peer, runs) in peers.items():
        row = {"peer": name, "packs_ours": len(ours()), "packs_peer": len(peer())}
        rows.append(row | {"fill_ours": fill(ours()), "fill_peer": fill(peer()), **paired(ours, peer, runs)})
    rows.append({"peer": "pad to longest", "fill_peer": sum(lengths) / (N * max(lengths))})
    windows = pack(lengths, tiles, CAP, 10**6, WINDOW)
    rows.append(
        {"window": WINDOW, "fill_ours": fill(windows), "order_independent_of_workers": same_with_workers(lengths)}
    )
    report("packing", rows)


if __name__ == "__main__":
    main()
