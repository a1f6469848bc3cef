"""Dividing an evaluation over workers, and a worker's share into batches.

Items differ in cost by a factor of hundreds (512 against 80,000 tokens), so contiguous or strided shares leave most
workers idle. Longest processing time first puts each item, dearest first, on the least loaded worker: at most 4/3 of
the ideal time (Graham 1969), in practice within a percent.
"""

import heapq
from collections.abc import Hashable, Sequence


def assign(costs: Sequence[float], n_shards: int) -> list[list[int]]:
    """Item numbers of each shard by longest processing time first; a pure function of the costs.

    >>> assign([5, 1, 1, 1, 1, 1], 2)
    [[0], [1, 2, 3, 4, 5]]
    """
    if n_shards < 1:
        raise ValueError(f"{n_shards} shards; at least 1 is needed")
    shards: list[list[int]] = [[] for _ in range(n_shards)]
    heap = [(0.0, shard) for shard in range(n_shards)]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, shard = heapq.heappop(heap)
        shards[shard].append(item)
        heapq.heappush(heap, (load + costs[item], shard))
    return [sorted(shard) for shard in shards]


def makespan(costs: Sequence[float], shards: list[list[int]]) -> float:
    """Cost of the most loaded shard over the ideal (equal) share; 1.0 is perfect."""
    ideal = sum(costs) / len(shards)
    return max(sum(costs[i] for i in shard) for shard in shards) / ideal if ideal else 1.0


def batches(
    costs: Sequence[float], shared: Sequence[Hashable], batch_size: int, *, max_waste: float = 0.5
) -> list[list[int]]:
    """Item numbers in batches of similar cost, dearest first, so that running out of memory shows at once.

    Items with equal `shared` (the same media, the same long document) stay neighbours. A batch closes when it is full
    or when the next item costs less than `1 - max_waste` of the batch's first: padding never wastes more than that.
    """
    dearest: dict[Hashable, float] = {}
    first: dict[Hashable, int] = {}
    for i, (cost, key) in enumerate(zip(costs, shared, strict=True)):
        dearest[key] = max(cost, dearest.get(key, 0.0))
        first.setdefault(key, i)
    order = sorted(range(len(costs)), key=lambda i: (-dearest[shared[i]], first[shared[i]], -costs[i], i))
    result: list[list[int]] = []
    for i in order:
        full = not result or len(result[-1]) >= batch_size
        if full or costs[i] < (1 - max_waste) * max(costs[j] for j in result[-1]):
            result.append([])
        result[-1].append(i)
    return result
