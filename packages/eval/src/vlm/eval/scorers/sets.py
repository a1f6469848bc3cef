"""Sets of rows that count together: MMVP's pairs, MMBench's circular groups, MME's images.

A row names its set in `meta["set"]`. A set with a row that was not asked or not answered is not scored.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import Answers, Metric, ResultRow, plain
from vlm.eval.measures.stats import mean_interval
from vlm.eval.measures.text import Compat


def set_of(row: ResultRow) -> str:
    """Name the set of a row within its group; a row that names none is a set by itself."""
    return f"{row['group']}/{(row.get('meta') or {}).get('set', row['id'])}"


def complete_sets(rows: Sequence[ResultRow], answers: Answers) -> dict[str, float]:
    """Return set -> 1.0 if all its rows are right, else 0.0, for sets of which every row was asked and answered.

    Where a row says how many rows its set has (`meta["set_size"]`), a set that --limit cut does not count.
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


def whole_sets(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the share of sets with every row right (MMVP, MMBench), then the plain accuracies."""
    answers, name = Answers(rows, compat), benchmark.options.get("metric", "accuracy")
    sets = complete_sets(rows, answers)
    if not sets:
        return [answers.metric(name, None, note="no set was answered as a whole"), *plain(rows, compat, "rows")]
    values = list(sets.values())
    left_out = len({set_of(row) for row in rows}) - len(sets)
    note = f"{left_out} sets with rows that were not asked or not answered are left out" if left_out else ""
    headline = answers.metric(name, float(np.mean(values)), mean_interval(values, list(sets)), note)
    return [headline, *plain(rows, compat, "rows")]


AGGREGATES = {"whole_sets": whole_sets}
