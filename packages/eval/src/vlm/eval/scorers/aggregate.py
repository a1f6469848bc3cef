"""Aggregates that several benchmarks share: the mean, the mean of groups, and no number at all.

An aggregate turns rows of results.jsonl into metrics with intervals. Those of a single benchmark are beside its scorer.
"""

from collections.abc import Sequence

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import ANSWERED, Answers, Metric, ResultRow, bounds_of, plain
from vlm.eval.measures.stats import Array, ratio
from vlm.eval.measures.text import Compat


def mean(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean score over all items and per group."""
    return plain(rows, compat, benchmark.options.get("metric", "accuracy"))


def not_scored(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return no number, because a server keeps the answers; the note says which file to submit where."""
    note = "not scored"
    if about := benchmark.submission:
        note += f": submit {about.file} to {about.server}"
    empty = sum(row["outcome"] not in ANSWERED for row in rows)
    note += f"; {empty} of {len(rows)} questions have no answer and are empty in it" if empty else ""
    return [Answers(rows, compat).metric(benchmark.options.get("metric", "accuracy"), None, note=note)]


def group_mean(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean of the means of the groups (equal weight), each group, and the plain accuracy (ChartQA)."""
    name, answers = benchmark.options["metric"], Answers(rows, compat)
    groups = list(benchmark.options["splits"])
    each = [Answers([row for row in rows if row["group"] == group], compat).mean(f"{name}/{group}") for group in groups]
    if any(metric.value is None for metric in each):
        missing = ", ".join(g for g, metric in zip(groups, each, strict=True) if metric.value is None)
        return [answers.metric(name, None, note=f"no scored item in {missing}"), *each, *plain(rows, compat)[:1]]
    member = np.array([[row["group"] == group for group in groups] for row in answers.rows], dtype=float)
    columns = np.concatenate([member * answers.values[:, None], member], axis=1)

    def statistic(totals: Array) -> Array:
        means: Array = ratio(np.stack(np.split(totals, 2, axis=-1), axis=-1)).mean(axis=-1)
        return means

    value = float(np.mean([metric.value for metric in each])) / 100
    bounds = bounds_of(answers.bootstrap(columns, statistic, seed=0), value, answers.n_clusters)
    return [answers.metric(name, value, bounds), *each, *plain(rows, compat)[:1]]


AGGREGATES = {"group_mean": group_mean, "mean": mean, "not_scored": not_scored}
