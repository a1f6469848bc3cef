"""Intervals of the numbers a report prints: Wilson for accuracies, a seeded bootstrap over clusters for the rest.

Everything is a fraction (0..1), two-sided 95 % unless told otherwise, and the same on every machine.
"""

from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float] | tuple[None, None]
CHUNK = 100
"""Resamples held in memory at a time."""


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Wilson score interval of successes / n; (None, None) for n = 0. Source: Wilson 1927."""
    if n <= 0:
        return None, None
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (0.0 if successes <= 0 else centre - half), (1.0 if successes >= n else centre + half)


def cluster_sums(columns: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """[items, k] -> [clusters, k]: sums over items of one cluster, in order of first appearance."""
    number = {key: i for i, key in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(number), columns.shape[1]))
    np.add.at(sums, np.fromiter((number[key] for key in clusters), dtype=np.int64, count=len(clusters)), columns)
    return sums


def replicates(
    sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """`statistic` of `n` bootstrap samples of clusters, float64 [n].

    `sums` is [clusters, k]; `statistic` takes [resamples, k] totals and gives [resamples]. A statistic that is
    undefined in a resample may give NaN.
    """
    clusters = len(sums)
    rng = np.random.default_rng(seed)
    found = np.empty(n)
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        drawn = rng.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        found[start : start + size] = statistic(times @ sums)
    return found


def interval(samples: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap replicates, NaN left out; (None, None) when none is left or none differs."""
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0 or np.ptp(samples) < 1e-12:
        return None, None
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio(totals: np.ndarray) -> np.ndarray:
    """[..., 2] sums and counts -> [...] their ratio, NaN for a count of 0."""
    sums, counts = totals[..., 0], totals[..., 1]
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0) -> Interval:
    """Interval of a mean of values in 0..1: Wilson for 0/1 values of independent items, else a cluster bootstrap.

    When no resample differs from another, for example because all answers are right, the width a bootstrap would give
    (none) is not to be believed: then Wilson over the number of clusters.
    """
    if not values:
        return None, None
    data = np.asarray(values, dtype=float)
    n_clusters = len(set(clusters))
    if n_clusters == len(data) and np.isin(data, (0.0, 1.0)).all():
        return wilson(float(data.sum()), len(data))
    sums = cluster_sums(np.stack([data, np.ones_like(data)], axis=1), clusters)
    found = interval(replicates(sums, ratio, seed=seed))
    return found if found[0] is not None else wilson(float(data.mean()) * n_clusters, n_clusters)
