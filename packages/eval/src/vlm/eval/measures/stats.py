"""Intervals of the numbers in a report: Wilson's for accuracies, a seeded bootstrap over clusters for the rest.

Values are fractions from 0 to 1. Intervals are two-sided, 95 % by default, and the same on every machine.

    wilson(45, 50)                                                # (0.786, 0.957)
    mean_interval([1, 0, 0.5, 1], ["a.png", "a.png", "b.png", "c.png"])
"""

from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Interval = tuple[float, float] | tuple[None, None]
CHUNK = 100
"""Resamples held in memory at a time, at most."""

DRAWN = 1_000_000
"""Draws held in memory at a time: of more than 10,000 clusters fewer resamples at a time."""


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of successes / n; (None, None) for n = 0. Source: Wilson 1927."""
    if n <= 0:
        return None, None
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (0.0 if successes <= 0 else center - half), (1.0 if successes >= n else center + half)


Clusters = Sequence[Hashable] | npt.NDArray[np.int64]
"""For each item what it shares with the items that are not independent of it: a name, or a number in its place."""


def cluster_sums(columns: Array, clusters: Clusters) -> Array:
    """Sum the rows of [items, k] of each cluster: [clusters, k], in order of first appearance."""
    if isinstance(clusters, np.ndarray):
        _, first, which = np.unique(clusters, return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(len(first))
        numbers = place[which]
    else:
        number = {key: i for i, key in enumerate(dict.fromkeys(clusters))}
        numbers = np.fromiter((number[key] for key in clusters), dtype=np.int64, count=len(clusters))
    sums = np.zeros((len(np.unique(numbers)), columns.shape[1]))
    np.add.at(sums, numbers, columns)
    return sums


def count_clusters(clusters: Clusters) -> int:
    """Return the number of different clusters."""
    return len(np.unique(clusters) if isinstance(clusters, np.ndarray) else set(clusters))


def replicates(sums: Array, statistic: Callable[[Array], Array], *, n: int = 1000, seed: int = 0) -> Array:
    """Compute a statistic of `n` bootstrap samples of clusters, float64 [n].

    Args:
        sums: [clusters, k], see `cluster_sums`.
        statistic: From totals [resamples, k] to [resamples]; NaN where it is undefined.
        n: Number of resamples.
        seed: Of the random generator.
    """
    clusters = len(sums)
    rng = np.random.default_rng(seed)
    found = np.empty(n)
    chunk = max(1, min(CHUNK, DRAWN // max(1, clusters)))
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        drawn = rng.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        found[start : start + size] = statistic(times @ sums)
    return found


def interval(samples: Array, level: float = 0.95) -> Interval:
    """Return the percentile interval of replicates, without NaN; (None, None) when none is left or none differs."""
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0 or np.ptp(samples) < 1e-12:
        return None, None
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio(totals: Array) -> Array:
    """Divide sums by counts, [..., 2] -> [...]; NaN for a count of 0."""
    sums, counts = totals[..., 0], totals[..., 1]
    found: Array = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return found


def mean_interval(values: Sequence[float] | Array, clusters: Clusters, *, seed: int = 0) -> Interval:
    """Return the interval of a mean of values from 0 to 1.

    Wilson's for values 0 and 1 of independent items, else by a bootstrap over clusters. When no resample differs from
    another, for example because all answers are right, a bootstrap gives no width: then Wilson's over the clusters.

    Args:
        values: One for each item.
        clusters: For each item a name that it shares with the items that are not independent of it.
        seed: Of the bootstrap.
    """
    if not len(values):
        return None, None
    data = np.asarray(values, dtype=float)
    n_clusters = count_clusters(clusters)
    if n_clusters == len(data) and np.isin(data, (0.0, 1.0)).all():
        return wilson(float(data.sum()), len(data))
    sums = cluster_sums(np.stack([data, np.ones_like(data)], axis=1), clusters)
    found = interval(replicates(sums, ratio, seed=seed))
    return found if found[0] is not None else wilson(float(data.mean()) * n_clusters, n_clusters)
