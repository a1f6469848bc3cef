"""Rows of results.jsonl and metrics: what every aggregate starts from and returns.

A row counts as answered when its outcome is ok or truncated and it has a score. The others stay in `n_total` only: an
item that ran out of memory is no wrong answer, and no right one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm.eval.measures.stats import Interval, cluster_sums, interval, mean_interval, replicates, wilson
from vlm.eval.measures.text import Compat

Row = dict[str, Any]
ANSWERED = ("ok", "truncated")


@dataclass(frozen=True)
class Metric:
    """A number with its error. `value`, `low`, `high` on a 0-100 scale (MME: points); `value` None is explained in
    `note`."""

    name: str
    value: float | None
    n_scored: int
    n_total: int
    low: float | None = None
    high: float | None = None
    note: str = ""


class Answers:
    """The answered rows of a group of rows as arrays: `values` 0..1, `clusters`, and `total` rows of any outcome."""

    def __init__(self, rows: Sequence[Row], compat: Compat) -> None:
        key = "strict_score" if compat == "fixed" else "score"
        self.total = len(rows)
        self.rows = [row for row in rows if row["outcome"] in ANSWERED and row[key] is not None]
        self.values = np.array([float(row[key]) for row in self.rows])
        self.clusters = [str((row.get("meta") or {}).get("cluster", f"id {row['id']}")) for row in self.rows]

    def metric(self, name: str, value: float | None, bounds: Interval = (None, None), note: str = "") -> Metric:
        """A metric of these answers; `value` and `bounds` are fractions."""
        bad = value is None or math.isnan(value)
        low, high = bounds
        return Metric(
            name,
            None if value is None or bad else 100 * value,
            len(self.rows),
            self.total,
            None if low is None or bad else 100 * low,
            None if high is None or bad else 100 * high,
            note or ("nothing was scored" if bad else ""),
        )

    def mean(self, name: str) -> Metric:
        """The mean score."""
        if not self.rows:
            return self.metric(name, None)
        return self.metric(name, float(self.values.mean()), mean_interval(list(self.values), self.clusters))

    def bootstrap(self, columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int) -> np.ndarray:
        """Replicates of `statistic` over totals of `columns` [items, k], resampling clusters."""
        return replicates(cluster_sums(columns, self.clusters), statistic, seed=seed)


def by_group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows per group, in order of first appearance."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return dict(groups)


def plain(rows: Sequence[Row], compat: Compat, name: str = "accuracy") -> list[Metric]:
    """The mean over all items, then per group where there are several."""
    groups = by_group(rows)
    each = [Answers(part, compat).mean(f"{name}/{group}") for group, part in groups.items()] if len(groups) > 1 else []
    return [Answers(rows, compat).mean(name), *each]


def bounds_of(samples: np.ndarray, value: float, n: int) -> Interval:
    """The interval of bootstrap replicates, or Wilson's over `n` clusters when no replicate differs from another."""
    found = interval(samples)
    return found if found[0] is not None else wilson(value * n, n)
