"""Longest processing time first against the published splits: 500 long samples, quadratic cost, 8 and 32 workers.

Peers: the samples sorted by length and cut into contiguous pieces, and every W-th sample in file order (the published
evaluators' way). What counts is deterministic: the cost of the most loaded worker over the equal share, so the time
that all workers wait for the last. Timed is the assignment itself.
"""

import random

from harness import paired, report

from vlm.eval.run.shards import assign, makespan

SAMPLES = 500


def contiguous(costs: list[float], workers: int) -> list[list[int]]:
    """Pieces of the sorted list."""
    order, n = sorted(range(len(costs)), key=lambda i: costs[i]), len(costs)
    return [order[k * n // workers : (k + 1) * n // workers] for k in range(workers)]


def strided(costs: list[float], workers: int) -> list[list[int]]:
    """Every `workers`-th sample."""
    return [list(range(k, len(costs), workers)) for k in range(workers)]


def lengths(kind: str) -> list[int]:
    """Context lengths in tokens, in file order: as MM-NIAH's 1k to 80k, or up to a million with few of the longest."""
    rng = random.Random(kind)
    if kind == "1k-80k":
        return [round(1_000 * 80 ** rng.random()) for _ in range(SAMPLES)]
    return [round(16_000 * 64 ** (rng.random() ** 1.5)) for _ in range(SAMPLES)]


def main() -> None:
    rows = []
    for kind in ("1k-80k", "16k-1M"):
        costs = [float(length) ** 2 for length in lengths(kind)]
        for workers in (8, 32):
            ours = assign(costs, workers)
            assert sorted(item for shard in ours for item in shard) == list(range(SAMPLES))
            assert ours == assign(costs, workers), "not a pure function of the costs"
            splits = {"contiguous": contiguous(costs, workers), "strided": strided(costs, workers)}
            row = {"tokens": kind, "samples": SAMPLES, "workers": workers, "makespan_over_ideal": makespan(costs, ours)}
            row |= {f"{name}_over_ideal": makespan(costs, split) for name, split in splits.items()}
            row |= {"to_reach": 1.01, "longest_over_ideal": max(costs) * workers / sum(costs)}
            timed = paired(
                lambda costs=costs, workers=workers: assign(costs, workers),
                lambda costs=costs, workers=workers: strided(costs, workers),
            )
            rows.append(row | {"ours_median_s": timed["ours_median_s"], "strided_median_s": timed["peer_median_s"]})
    report("shards", rows)


if __name__ == "__main__":
    main()
