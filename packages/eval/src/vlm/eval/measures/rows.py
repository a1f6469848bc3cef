"""Rows of results.jsonl and metrics: what every aggregate starts from and returns.

A row counts as answered when its outcome is ok or truncated and it has a score. The others count in `n_total` only: an
item that ran out of memory is neither a wrong answer nor a right one.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, overload

import numpy as np

from vlm.core.spill import CODEC
from vlm.eval.measures.stats import (
    Array,
    Clusters,
    Interval,
    cluster_sums,
    count_clusters,
    interval,
    mean_interval,
    replicates,
    wilson,
)
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


FACTS = np.dtype(
    [("group", "i4"), ("cluster", "i8"), ("answered", "?")]
    + [(key + kind, "?" if kind else "f8") for key in ("score", "strict_score") for kind in ("", "?")]
)
"""What every metric needs of a row, in 31 bytes; `score?` tells whether there is one."""


class Rows(Sequence[ResultRow]):
    """Rows of results.jsonl, and what every metric needs of them in one array.

    Where the rows lie on the disk they are read from there again, and only what an aggregate looks at.

    Attributes:
        groups: Names of the groups, by their number in `facts`.
        facts: FACTS of each row.

    >>> rows = Rows.of([{"id": "1", "group": "a", "outcome": "ok", "score": 1.0}])
    >>> len(rows), float(rows.facts["score"].sum()), rows[0]["id"]
    (1, 1.0, '1')
    """

    def __init__(self, source: Sequence[ResultRow], groups: list[str], facts: np.ndarray, at: np.ndarray | None = None):
        self.groups, self.facts = groups, facts
        self._source, self._at = source, at

    @classmethod
    def of(cls, rows: Sequence[ResultRow]) -> "Rows":
        """Return rows with their facts; those that have them are returned as they are."""
        if isinstance(rows, Rows):
            return rows
        number: dict[str, int] = {}

        def facts(row: ResultRow) -> tuple[Any, ...]:
            scores = (row.get("score"), row.get("strict_score"))
            cluster = str((row.get("meta") or {}).get("cluster", f"id {row['id']}"))
            digest = hashlib.blake2b(cluster.encode(*CODEC), digest_size=8).digest()
            known = [part for score in scores for part in (float(score or 0), score is not None)]
            group = number.setdefault(row["group"], len(number))
            return group, int.from_bytes(digest, "big", signed=True), row["outcome"] in ANSWERED, *known

        found = np.fromiter(map(facts, rows), FACTS, len(rows))
        return cls(rows, list(number), found)

    def take(self, numbers: np.ndarray) -> "Rows":
        """Return the rows with these numbers, which ascend."""
        if len(numbers) == len(self):
            return self
        return Rows(self._source, self.groups, self.facts[numbers], numbers if self._at is None else self._at[numbers])

    def __len__(self) -> int:
        return len(self.facts)

    @overload
    def __getitem__(self, at: int) -> ResultRow: ...
    @overload
    def __getitem__(self, at: slice) -> list[ResultRow]: ...
    def __getitem__(self, at: int | slice) -> ResultRow | list[ResultRow]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return self._source[at if self._at is None else int(self._at[at])]

    def __iter__(self) -> Iterator[ResultRow]:
        return iter(self._source) if self._at is None else (self._source[int(at)] for at in self._at)


class Answers:
    """The answered rows of a group of rows, as arrays.

    Attributes:
        rows: The answered rows.
        values: Their scores, float64 [rows], 0 to 1.
        clusters: For each row what it shares with the rows that are not independent of it, int64 [rows] or names.
        total: Number of rows with any outcome.
    """

    def __init__(self, rows: Sequence[ResultRow], compat: Compat) -> None:
        key = "strict_score" if compat == "fixed" else "score"
        every = Rows.of(rows)
        self.total = len(every)
        self.rows = every.take(np.flatnonzero(every.facts["answered"] & every.facts[f"{key}?"]))
        self.values: Array = np.ascontiguousarray(self.rows.facts[key])
        self.clusters: Clusters = np.ascontiguousarray(self.rows.facts["cluster"])

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return count_clusters(self.clusters)

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
        return self.metric(name, float(self.values.mean()), mean_interval(self.values, self.clusters))

    def bootstrap(self, columns: Array, statistic: Callable[[Array], Array], *, seed: int) -> Array:
        """Return replicates of `statistic` over totals of `columns` [rows, k], resampling clusters."""
        return replicates(cluster_sums(columns, self.clusters), statistic, seed=seed)


class Parts:
    """Independent parts (sets, tasks) and averages of them: value and bootstrap replicates of each by name."""

    def __init__(self, rows: Sequence[ResultRow], compat: Compat) -> None:
        self.rows, self.compat = Rows.of(rows), compat
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
        return answers.metric(name, value, bounds_of(samples, value, answers.n_clusters))


def by_group(rows: Sequence[ResultRow]) -> dict[str, Rows]:
    """Return the rows of each group, in order of first appearance."""
    every = Rows.of(rows)
    numbers = np.argsort(every.facts["group"], kind="stable")
    found, starts = np.unique(every.facts["group"][numbers], return_index=True)
    parts = dict(zip(found.tolist(), np.split(numbers, starts[1:]), strict=False))
    return {every.groups[group]: every.take(parts[group]) for group in sorted(parts, key=lambda g: parts[g][0])}


def plain(rows: Sequence[ResultRow], compat: Compat, name: str = "accuracy") -> list[Metric]:
    """Return the mean over all rows, then per group where there are several."""
    rows = Rows.of(rows)
    groups = by_group(rows)
    each = [Answers(part, compat).mean(f"{name}/{group}") for group, part in groups.items()] if len(groups) > 1 else []
    return [Answers(rows, compat).mean(name), *each]


def bounds_of(samples: Array, value: float, n: int) -> Interval:
    """Return the interval of bootstrap replicates, or Wilson's over `n` clusters when no replicate differs."""
    found = interval(samples)
    return found if found[0] is not None else wilson(value * n, n)
