"""Aggregates in which rows count together: MME images, MMVP pairs, circular groups, MMMU domains.

Rows name their set in `meta["set"]`. A set with a row that was not asked or not answered is not scored.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import Answers, Metric, Row, bounds_of, by_group, plain
from vlm.eval.measures.stats import mean_interval, ratio
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.mme import TASKS
from vlm.eval.scorers.mmmu import DOMAINS


def set_of(row: Row) -> str:
    """The set of a row within its group; a row that names none is its own."""
    return f"{row['group']}/{(row.get('meta') or {}).get('set', row['id'])}"


def complete_sets(rows: Sequence[Row], answers: Answers) -> dict[str, float]:
    """Set -> 1.0 if all its rows are right, else 0.0; only sets of which every row was asked and answered.

    A row that knows how many rows its set has (`meta["set_size"]`) keeps a set that --limit cut from counting.
    """
    size: dict[str, int] = defaultdict(int)
    for row in rows:
        size[set_of(row)] += 1
    for row in rows:
        size[set_of(row)] = max(size[set_of(row)], (row.get("meta") or {}).get("set_size", 0))
    found: dict[str, list[float]] = defaultdict(list)
    for row, value in zip(answers.rows, answers.values, strict=True):
        found[set_of(row)].append(value)
    return {name: float(min(values) == 1) for name, values in found.items() if len(values) == size[name]}


def whole_sets(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Share of sets with every row right (MMVP pairs, MMBench's circular groups), then the plain accuracies.

    Source: 5.1, 5.5.
    """
    answers, name = Answers(rows, compat), benchmark.options.get("metric", "accuracy")
    sets = complete_sets(rows, answers)
    if not sets:
        return [answers.metric(name, None, note="no set was answered as a whole"), *plain(rows, compat, "rows")]
    values = list(sets.values())
    left_out = len({set_of(row) for row in rows}) - len(sets)
    note = f"{left_out} sets with rows that were not asked or not answered are left out" if left_out else ""
    headline = answers.metric(name, float(np.mean(values)), mean_interval(values, list(sets)), note)
    return [headline, *plain(rows, compat, "rows")]


def mme(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Points, not percent: perception (0 to 2000), cognition (0 to 800), each task (0 to 200). Source: 6.2.

    Task points are 100 times the share of right rows plus 100 times the share of images (sets) with both right.
    """
    groups = by_group(rows)
    totals, each = [], []
    for kind, names in TASKS.items():
        tasks = names.split()
        part = Answers([row for row in rows if row["group"] in tasks], compat)
        part.clusters = [set_of(row) for row in part.rows]
        columns = _points(part, tasks, [row for row in rows if row["group"] in tasks])
        missing = [task for i, task in enumerate(tasks) if not columns[:, 4 * i + 3].sum()]
        points = _task_points(columns.sum(axis=0), len(tasks))
        each += [
            Answers(groups.get(task, []), compat).metric(task, None if task in missing else float(value))
            for task, value in zip(tasks, points, strict=True)
        ]
        if missing:
            totals.append(part.metric(kind, None, note=f"{len(missing)} missing: {', '.join(missing[:5])}"))
            continue
        value = float(points.sum())
        samples = part.bootstrap(columns, partial(_total_points, n_tasks=len(tasks)), seed=0)
        totals.append(part.metric(kind, value, bounds_of(samples, value, 0)))
    return [*totals, *each, *plain(rows, compat)[:1]]


def _points(answers: Answers, tasks: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
    """[rows, 4 per task]: right, answered, images with both right, images answered (on the first row of each)."""
    columns, seen = np.zeros((len(answers.rows), 4 * len(tasks))), set()
    whole = complete_sets(rows, answers)
    for i, (row, value) in enumerate(zip(answers.rows, answers.values, strict=True)):
        image, start = set_of(row), 4 * tasks.index(row["group"])
        columns[i, start : start + 2] = value, 1
        if image in whole and image not in seen:
            columns[i, start + 2 : start + 4] = whole[image], 1
            seen.add(image)
    return columns


def _task_points(sums: np.ndarray, n_tasks: int) -> np.ndarray:
    """[..., 4 per task] -> [..., tasks] in hundreds of points; NaN for a task without rows or images."""
    return ratio(sums.reshape(*sums.shape[:-1], n_tasks, 2, 2)).sum(axis=-1)


def _total_points(sums: np.ndarray, n_tasks: int) -> np.ndarray:
    """[..., 4 per task] -> [...]: the sum of the task points, in hundreds."""
    return _task_points(sums, n_tasks).sum(axis=-1)


def mmmu(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """Accuracy over all questions, per domain and per subject (the groups). Source: 5.4."""
    overall, *subjects = plain(rows, compat)
    domains = {name: [row for row in rows if row["group"] in names.split()] for name, names in DOMAINS.items()}
    return [overall, *[Answers(part, compat).mean(f"accuracy/{name}") for name, part in domains.items()], *subjects]
