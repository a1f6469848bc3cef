"""Rows of results.jsonl and metrics: what every aggregate starts from and returns.

A row counts as answered when its outcome is ok or truncated and it has a score. The others count in `n_total` only: an
item that ran out of memory is neither a wrong answer nor a right one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from vlm.eval.measures.stats import Array, Interval, cluster_sums, interval, mean_interval, replicates, wilson
from vlm.eval.measures.text import Compat


class ResultRow(TypedDict):
    """One line of results.jsonl: an item, its reply, and both scores.

    `score` is by the published rule, `strict_score` by the corrected one, from 0 to 1; None: not scored. `meta` is the
    item's own, `judge` the verdict where a judge was asked. `asked` is what the question is about, where the set
    says it: numbers of images from 0, or texts of the prompt.
    """

    benchmark: str
    id: str
    group: str
    outcome: str
    prompt: str
    images: list[str]
    tokens: int | None
    max_position: float | None
    completion: str | None
    extracted: str
    score: float | None
    strict_score: float | None
    why: str
    gold: Any
    meta: dict[str, Any]
    key: str
    judge: NotRequired[dict[str, Any]]
    asked: NotRequired[list[int | str]]


ANSWERED = ("ok", "truncated")
"""Outcomes with a reply."""


@dataclass(frozen=True)
class Metric:
    """A number with its error, from 0 to 100 (MME: points).

    `low` and `high` bound the 95 % interval. A `value` of None is explained in `note`.
    """

    name: str
    value: float | None
    n_scored: int
    n_total: int
    low: float | None = None
    high: float | None = None
    note: str = ""


class Answers:
    """The answered rows of a group of rows, as arrays.

    Attributes:
        rows: The answered rows.
        values: Their scores, float64 [rows], 0 to 1.
        clusters: For each row a name that it shares with the rows that are not independent of it.
        total: Number of rows with any outcome.
    """

    def __init__(self, rows: Sequence[ResultRow], compat: Compat) -> None:
        key: Literal["score", "strict_score"] = "strict_score" if compat == "fixed" else "score"
        self.total = len(rows)
        self.rows = [row for row in rows if row["outcome"] in ANSWERED and row[key] is not None]
        self.values: Array = np.array([float(row[key] or 0) for row in self.rows])
        self.clusters = [str((row.get("meta") or {}).get("cluster", f"id {row['id']}")) for row in self.rows]

    def metric(self, name: str, value: float | None, bounds: Interval = (None, None), note: str = "") -> Metric:
        """Make a metric of these answers; `value` and `bounds` are fractions."""
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
        """Return the mean score."""
        if not self.rows:
            return self.metric(name, None)
        return self.metric(name, float(self.values.mean()), mean_interval(list(self.values), self.clusters))

    def bootstrap(self, columns: Array, statistic: Callable[[Array], Array], *, seed: int) -> Array:
        """Return replicates of `statistic` over totals of `columns` [rows, k], resampling clusters."""
        return replicates(cluster_sums(columns, self.clusters), statistic, seed=seed)


class Parts:
    """Independent parts (sets, tasks) and averages of them: value and bootstrap replicates of each by name."""

    def __init__(self, rows: Sequence[ResultRow], compat: Compat) -> None:
        self.rows, self.compat = rows, compat
        self.known: dict[str, tuple[float, Array]] = {}

    def average(self, name: str, parts: Sequence[str]) -> Metric:
        """Average `parts`, and remember the result as a part; without value, and with a note, when one is missing."""
        answers = Answers(self.rows, self.compat)
        missing = [part for part in parts if part not in self.known]
        if missing:
            return answers.metric(name, None, note=f"{len(missing)} missing: {', '.join(missing[:5])}")
        value = float(np.mean([self.known[part][0] for part in parts]))
        samples: Array = np.mean([self.known[part][1] for part in parts], axis=0)
        self.known[name] = (value, samples)
        return answers.metric(name, value, bounds_of(samples, value, len(set(answers.clusters))))


def by_group(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """Return the rows of each group, in order of first appearance."""
    groups: dict[str, list[ResultRow]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return dict(groups)


def plain(rows: Sequence[ResultRow], compat: Compat, name: str = "accuracy") -> list[Metric]:
    """Return the mean over all rows, then per group where there are several."""
    groups = by_group(rows)
    each = [Answers(part, compat).mean(f"{name}/{group}") for group, part in groups.items()] if len(groups) > 1 else []
    return [Answers(rows, compat).mean(name), *each]


def bounds_of(samples: Array, value: float, n: int) -> Interval:
    """Return the interval of bootstrap replicates, or Wilson's over `n` clusters when no replicate differs."""
    found = interval(samples)
    return found if found[0] is not None else wilson(value * n, n)
