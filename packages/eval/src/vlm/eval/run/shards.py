"""Divide an evaluation over workers, and a worker's share into batches.

Items differ in cost by a factor of hundreds (512 against 80,000 tokens), so contiguous or strided shares leave most
workers idle. Longest processing time first puts each item, dearest first, on the least loaded worker: at most 4/3 of
the ideal time (Graham 1969), in practice within a percent.
"""

import heapq
from collections.abc import Hashable, Sequence
from math import inf


def assign(costs: Sequence[float], n_shards: int) -> list[list[int]]:
    """Return the item numbers of each shard by longest processing time first; a pure function of the costs.

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
    """Return the cost of the most loaded shard over the ideal (equal) share; 1.0 is perfect."""
    ideal = sum(costs) / len(shards)
    return max(sum(costs[i] for i in shard) for shard in shards) / ideal if ideal else 1.0


def batches(
    costs: Sequence[float],
    shared: Sequence[Hashable | None],
    batch_size: int,
    *,
    max_waste: float = 0.5,
    max_tokens: float = inf,
) -> list[list[int]]:
    """Return item numbers in batches of similar cost, the dearest first, so that running out of memory shows at once.

    Items with equal `shared` ask about one document. They have batches to themselves, so that generation computes the
    document once, and are divided only when there are more than `batch_size`. The others (None, or a key that no other
    item has) fill batches in order of cost.

    A batch closes when it is full, when the next item costs less than `1 - max_waste` of the batch's first (padding
    never wastes more than that), or at `max_tokens`, padding counted; a single item may cost more.

    >>> batches([9, 2, 9, 8, 2], ["a", None, "a", None, None], 2)
    [[0, 2], [3], [1, 4]]
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (_, key) in enumerate(zip(costs, shared, strict=True)):
        groups.setdefault(key, []).append(i)
    documents = [group for key, group in groups.items() if key is not None and len(group) > 1]
    together = {i for group in documents for i in group}
    singles = [i for i in range(len(costs)) if i not in together]
    result: list[list[int]] = []
    for group in (singles, *documents):
        batch: list[int] = []
        for i in sorted(group, key=lambda i: (-costs[i], i)):
            full = len(batch) >= batch_size
            heavy = group is singles and batch and (len(batch) + 1) * costs[batch[0]] > max_tokens
            if not batch or full or heavy or costs[i] < (1 - max_waste) * costs[batch[0]]:
                batch = []
                result.append(batch)
            batch.append(i)
    return sorted(result, key=lambda batch: (-costs[batch[0]], batch[0]))
