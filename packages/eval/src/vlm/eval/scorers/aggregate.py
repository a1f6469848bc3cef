"""From rows of results.jsonl to metrics: plain accuracies and the published aggregates, each with its interval.

A row counts as answered when its outcome is ok or truncated and it has a score. The others stay in `n_total` only: an
item that ran out of memory is no wrong answer, and no right one.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.scorers.mmniah import DEPTHS, EDGES, cells
from vlm.eval.scorers.text import Compat
from vlm.eval.stats import Interval, cluster_sums, interval, mean_interval, ratio, replicates, wilson

Row = dict[str, Any]
ANSWERED = ("ok", "truncated")


@dataclass(frozen=True)
class Metric:
    """A number with its error. `value`, `low`, `high` on a 0-100 scale; `value` None is explained in `note`."""

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


def mean(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Mean score over items and per group."""
    return plain(rows, compat, benchmark.options.get("metric", "accuracy"))


def _bounds(samples: np.ndarray, value: float, n: int) -> Interval:
    found = interval(samples)
    return found if found[0] is not None else wilson(value * n, n)


def group_mean(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """ChartQA: the mean of the groups' means (equal weight), each group, and the plain accuracy. Source: 4.3."""
    name, answers = benchmark.options["metric"], Answers(rows, compat)
    groups = list(benchmark.options["splits"])
    each = [Answers([row for row in rows if row["group"] == group], compat).mean(f"{name}/{group}") for group in groups]
    if any(metric.value is None for metric in each):
        missing = ", ".join(g for g, metric in zip(groups, each, strict=True) if metric.value is None)
        return [answers.metric(name, None, note=f"no scored item in {missing}"), *each, *plain(rows, compat)[:1]]
    member = np.array([[row["group"] == group for group in groups] for row in answers.rows], dtype=float)
    columns = np.concatenate([member * answers.values[:, None], member], axis=1)

    def statistic(totals: np.ndarray) -> np.ndarray:
        return ratio(np.stack(np.split(totals, 2, axis=-1), axis=-1)).mean(axis=-1)

    value = float(np.mean([metric.value for metric in each])) / 100
    bounds = _bounds(answers.bootstrap(columns, statistic, seed=0), value, len(set(answers.clusters)))
    return [answers.metric(name, value, bounds), *each, *plain(rows, compat)[:1]]


def _pope_counts(answers: Answers) -> np.ndarray:
    """[items, 4] TP, FP, TN, FN as 0/1. What the reply said follows from label and score: a reply that is neither yes
    nor no is wrong whatever the label."""
    right = answers.values == 1.0
    yes = np.array([row["gold"] == "yes" for row in answers.rows], dtype=bool)
    return np.stack([right & yes, ~right & ~yes, right & ~yes, ~right & yes], axis=1).astype(float)


def _f1(totals: np.ndarray) -> np.ndarray:
    """[..., 4] -> [...]; NaN without positives in labels and replies."""
    tp, fp, fn = totals[..., 0], totals[..., 1], totals[..., 3]
    size = 2 * tp + fp + fn
    return np.divide(2 * tp, size, out=np.full(size.shape, np.nan), where=size > 0)


def pope(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Mean F1 of the categories, then F1, accuracy, precision, recall and yes ratio of each. Source: 6.1.

    A category in which a published ratio divides by zero has no F1 in upstream mode, as published.
    """
    groups = list(benchmark.options["categories"])
    answers = Answers(rows, compat)
    each: list[Metric] = []
    f1s: list[float | None] = []
    for group in groups:
        part = Answers([row for row in rows if row["group"] == group], compat)
        counts = _pope_counts(part) if part.rows else np.zeros((0, 4))
        tp, fp, tn, fn = counts.sum(axis=0)
        note = "" if tp else f"no true positive among {len(part.rows)} answers: the published F1 divides by zero"
        f1 = float(_f1(counts.sum(axis=0))) if tp or compat == "fixed" else float("nan")
        f1s.append(None if math.isnan(f1) else f1)
        bounds: Interval = (None, None)
        if part.rows and not math.isnan(f1):
            bounds = _bounds(part.bootstrap(counts, _f1, seed=0), f1, len(set(part.clusters)))
        each.append(part.metric(f"F1/{group}", f1s[-1], bounds, note if f1s[-1] is None else ""))
        each.append(part.mean(f"accuracy/{group}"))
        for name, top, bottom in (
            ("precision", tp, tp + fp),
            ("recall", tp, tp + fn),
            ("yes ratio", tp + fp, tp + fp + tn + fn),
        ):
            each.append(part.metric(f"{name}/{group}", top / bottom if bottom else None, wilson(top, bottom)))
    missing = [group for group, f1 in zip(groups, f1s, strict=True) if f1 is None]
    if missing:
        headline = answers.metric("F1", None, note=f"no F1 for {', '.join(missing)}")
    else:
        counts = _pope_counts(answers)
        columns = np.concatenate([counts * [[row["group"] == g] for row in answers.rows] for g in groups], axis=1)

        def statistic(totals: np.ndarray) -> np.ndarray:
            return _f1(totals.reshape(-1, len(groups), 4)).mean(axis=-1)

        value = float(np.mean([f1 for f1 in f1s if f1 is not None]))
        bounds = _bounds(answers.bootstrap(columns, statistic, seed=0), value, len(set(answers.clusters)))
        headline = answers.metric("F1", value, bounds)
    return [headline, *plain(rows, compat)[:1], *each]


class Parts:
    """Independent parts (sets, tasks) whose values are averaged again and again: value and replicates of each."""

    def __init__(self, rows: Sequence[Row], compat: Compat) -> None:
        self.rows, self.compat = rows, compat
        self.known: dict[str, tuple[float, np.ndarray]] = {}

    def average(self, name: str, parts: Sequence[str]) -> Metric:
        """Mean over `parts`; with note and without value when one is missing. The result is a part itself."""
        answers = Answers(self.rows, self.compat)
        missing = [part for part in parts if part not in self.known]
        if missing:
            return answers.metric(name, None, note=f"{len(missing)} missing: {', '.join(missing[:5])}")
        value = float(np.mean([self.known[part][0] for part in parts]))
        samples = np.mean([self.known[part][1] for part in parts], axis=0)
        self.known[name] = (value, samples)
        return answers.metric(name, value, _bounds(samples, value, len(set(answers.clusters))))


def milebench(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """T, S and NI by both readings (mean over sets, mean over tasks), their average, and every set. Source: 10.1."""
    tasks: dict[str, list[str]] = benchmark.options["tasks"]
    sets = {letter: [s for task, names in tasks.items() if task.startswith(letter) for s in names] for letter in "TSN"}
    groups, parts, each = by_group(rows), Parts(rows, compat), []
    for number, group in enumerate(name for names in tasks.values() for name in names):
        answers = Answers(groups.get(group, []), compat)
        each.append(answers.mean(group))
        if answers.rows:
            columns = np.stack([answers.values, np.ones_like(answers.values)], axis=1)
            parts.known[group] = (float(answers.values.mean()), answers.bootstrap(columns, ratio, seed=number))
    by_set = [parts.average(f"{letter} (set mean)", sets[letter]) for letter in "TS"] + [parts.average("NI", sets["N"])]
    average = parts.average("average", ["T (set mean)", "S (set mean)", "NI"])
    task_means = [parts.average(task, names) for task, names in tasks.items() if task[0] in "TS"]
    by_task = [parts.average(f"{letter} (task mean)", [t for t in tasks if t.startswith(letter)]) for letter in "TS"]
    realistic = parts.average("realistic (task mean)", [task for task in tasks if task[0] in "TS"])
    return [average, *by_set, *by_task, realistic, *plain(rows, compat)[:1], *task_means, *each]


def mmniah(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Column means per task, image, text and average, and beside each task its plain accuracy. Source: 11.4."""
    tasks: list[str] = benchmark.options["tasks"]
    groups, parts = by_group(rows), Parts(rows, compat)
    columns, each = [], []
    for number, task in enumerate(tasks):
        answers = Answers(groups.get(task, []), compat)
        each.append(answers.mean(f"{task} (plain accuracy)"))
        found = _column_mean(answers, compat, seed=1000 * number)
        if found is None:
            columns.append(answers.metric(task, None, note=f"no scored sample of {EDGES[0]} tokens or more"))
            continue
        parts.known[task] = found
        value, samples = found
        columns.append(answers.metric(task, value, _bounds(samples, value, len(answers.rows))))
    kinds = [parts.average(kind, [task for task in tasks if task.endswith(kind)]) for kind in ("image", "text")]
    return [parts.average("average", ["image", "text"]), *kinds, *columns, *each, *plain(rows, compat)[:1]]


def _column_mean(answers: Answers, compat: Compat, *, seed: int) -> tuple[float, np.ndarray] | None:
    """Mean of the columns of one task and its replicates; None without a sample in any column.

    Resampled within each cell: across cells, a resample that empties one would lower the published mean (an empty cell
    counts 0) although no answer did.
    """
    metas = [row["meta"] for row in answers.rows]
    where = cells([m["context_length"] for m in metas], [m["placed_depth"] for m in metas])
    filled = [int(cell) for cell in np.unique(where) if cell >= DEPTHS]  # the first five hold what is too short
    if not filled:
        return None
    per_column = Counter(cell // DEPTHS for cell in filled)
    value, samples = 0.0, np.zeros(1000)
    for cell in filled:
        upstream = compat == "upstream"
        weight = 1 / (len(EDGES) * DEPTHS) if upstream else 1 / (len(per_column) * per_column[cell // DEPTHS])
        values = answers.values[where == cell]
        value += weight * float(values.mean())
        columns = np.stack([values, np.ones_like(values)], axis=1)
        samples += weight * replicates(columns, ratio, n=len(samples), seed=seed + cell)
    return value, samples


AGGREGATES: dict[str, Callable[[Benchmark, Sequence[Row], Compat], list[Metric]]] = {
    "mean": mean,
    "group_mean": group_mean,
    "pope": pope,
    "milebench": milebench,
    "mmniah": mmniah,
}
"""Aggregate name of a table -> function(benchmark, rows, compat) -> metrics, the headline first."""
