"""Tables of long-context benchmarks: score by length and depth, by length, by last position, by V2PE stride."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from vlm.eval.report.tables.reasons import benchmark_of
from vlm.eval.saved.evaluations import Evaluation, MetricNumbers, SampleRow, Who, numbers_of
from vlm.eval.scorers.mmniah import DEPTHS, cells, column_scores
from vlm.eval.scorers.mmniah import EDGES as PUBLISHED

EDGES = (0, 125, 250, 500, *PUBLISHED, *(1000 * k for k in (128, 256, 512)))
"""Lower edges of the context-length columns: the published eleven from 1k to 64k (MM-NIAH), continued both ways."""

LENGTH_VARIANT = re.compile(r"(.+?)[ -]\d+x$")
"""Titles of benchmarks that are one set at several lengths: `digit-haystack 1x`, `digit-haystack 2x`, …"""


class HaystackGrid(TypedDict):
    """Mean scores by depth (rows) and context length (columns, by their lower edges); None without an item.

    `plain` is the accuracy of all items of a column, `columns` MM-NIAH's published column score. `left_out` items are
    shorter than the first column.
    """

    lengths: list[int]
    scores: list[list[float | None]]
    counts: list[list[int]]
    plain: list[float | None]
    columns: list[float] | None
    left_out: int


class Haystack(Who, HaystackGrid):
    """The grid of one group of an evaluation; `group` is "" where there is one group."""

    group: str


class LengthPoint(TypedDict):
    """The mean score in points of the items in a column of context length."""

    length: int
    value: float
    items: int


class LengthCurve(Who):
    """Mean score by context length."""

    points: list[LengthPoint]


class PositionPoint(TypedDict):
    """The mean score in points of the items in a column of last position."""

    position: int
    value: float
    items: int


class PositionCurve(Who):
    """Mean score by the last position of the prompt."""

    points: list[PositionPoint]


class StridePoint(MetricNumbers):
    """The headline metric with one stride."""

    stride: float


class StrideCurve(TypedDict):
    """The headline metric of one model and benchmark by stride."""

    title: str
    model: str
    metric: str
    points: list[StridePoint]


def lengths_together(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Merge the evaluations of one set at several lengths, by the same model and variant, into one."""
    groups: dict[tuple[str, ...], list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        match = LENGTH_VARIANT.match(e.summary["title"])
        groups[match[1] if match else e.summary["title"], e.summary["model"], e.label].append(e)
    return [
        replace(es[0], summary={**es[0].summary, "title": title}, rows=[row for e in es for row in e.rows])
        for (title, _, _), es in groups.items()
    ]


def haystacks(e: Evaluation) -> list[Haystack]:
    """Return the grid of each group of an evaluation; an empty cell is None, never 0.

    MM-NIAH has the published eleven columns and the published column score, where an empty cell counts as 0; other sets
    have the columns that their items fill.
    """
    table = benchmark_of(e)
    published = table is not None and table.aggregate == "mmniah"
    groups: dict[str, list[SampleRow]] = defaultdict(list)
    for row in e.rows:
        if row.context_length is not None and row.depth is not None and 0 <= row.depth <= 1 and row.score is not None:
            groups[row.group].append(row)
    found = [(group, _published_grid(rows) if published else _grid(rows)) for group, rows in sorted(groups.items())]
    several = len(found) > 1
    return [{**e.who, "group": group if several else "", **grid} for group, grid in found if grid]


def _published_grid(rows: Sequence[SampleRow]) -> HaystackGrid | None:
    """Return the published bins; as published, samples below 1k tokens are in no column. None when all are below."""
    where = cells([row.context_length or 0 for row in rows], [row.depth or 0 for row in rows])
    n = (len(PUBLISHED) + 1) * DEPTHS
    sums = np.bincount(where, weights=[row.score or 0 for row in rows], minlength=n)
    counts = np.bincount(where, minlength=n)
    left_out = int(counts[:DEPTHS].sum())
    if left_out == len(rows):
        return None
    columns = [round(float(score), 6) for score in column_scores(sums.astype(float), counts.astype(float))]
    grids = [x.reshape(-1, DEPTHS)[1:].T for x in (sums, counts)]
    return _as_grid(PUBLISHED, *grids, columns=columns, left_out=left_out)


def _grid(rows: Sequence[SampleRow]) -> HaystackGrid:
    where = [(min(int((r.depth or 0) * DEPTHS), DEPTHS - 1), column(r.context_length or 0)) for r in rows]
    sums, counts = np.zeros((DEPTHS, len(EDGES))), np.zeros((DEPTHS, len(EDGES)), dtype=int)
    for at, row in zip(where, rows, strict=True):
        sums[at] += row.score or 0
        counts[at] += 1
    used = slice(min(c for _, c in where), max(c for _, c in where) + 1)
    return _as_grid(EDGES[used], sums[:, used], counts[:, used])


def _as_grid(
    lengths: Sequence[int],
    sums: NDArray[Any],
    counts: NDArray[Any],
    *,
    columns: list[float] | None = None,
    left_out: int = 0,
) -> HaystackGrid:
    """Turn sums and counts, [5, columns] each, into means, counts, and the plain accuracy of each column."""

    def means(total: NDArray[Any], n: NDArray[Any]) -> list[float | None]:
        return [float(a / b) if b else None for a, b in zip(total, n, strict=True)]

    return {
        "lengths": list(lengths),
        "scores": [means(a, b) for a, b in zip(sums, counts, strict=True)],
        "counts": counts.tolist(),
        "plain": means(sums.sum(axis=0), counts.sum(axis=0)),
        "columns": columns,
        "left_out": left_out,
    }


def by_length(evaluations: Sequence[Evaluation]) -> list[LengthCurve]:
    """Return mean scores by context length, for benchmarks whose items know their length in tokens."""
    return [
        {**e.who, "points": [{"length": edge, "value": value, "items": n} for edge, value, n in bins]}
        for e in evaluations
        if (bins := _binned(e, lambda row: row.context_length))
    ]


def by_position(evaluations: Sequence[Evaluation]) -> list[PositionCurve]:
    """Return mean scores by the prompt's last position, for the same benchmarks, where it was recorded.

    With a V2PE stride below the tokens of a tile the last position is smaller than the length.
    """
    return [
        {**e.who, "points": [{"position": edge, "value": value, "items": n} for edge, value, n in bins]}
        for e in evaluations
        if any(row.context_length is not None for row in e.rows)
        if (bins := _binned(e, lambda row: row.max_position))
    ]


def _binned(e: Evaluation, of: Callable[[SampleRow], float | None]) -> list[tuple[int, float, int]]:
    """Return the lower edge, mean score in points and number of items of each column that holds items."""
    bins: dict[int, list[float]] = defaultdict(list)
    for row in e.rows:
        x = of(row)
        if x is not None and x >= 0 and row.score is not None:
            bins[column(x)].append(row.score)
    return [(EDGES[c], 100 * fmean(bins[c]), len(bins[c])) for c in sorted(bins)]


def by_stride(evaluations: Sequence[Evaluation]) -> list[StrideCurve]:
    """Return the headline metric by stride, where one model was run with two or more."""
    groups: dict[tuple[str, str, str, str], list[StridePoint]] = defaultdict(list)
    for e in evaluations:
        stride, metric = e.variant.get("stride"), e.metric
        if stride is not None and not e.variant.get("shuffle_images") and metric and metric["value"] is not None:
            setting = (e.summary["title"], e.summary["model"], metric["name"], str(e.variant.get("tiles")))
            groups[setting].append({"stride": stride, **numbers_of(metric)})
    return [
        {"title": title, "model": model, "metric": metric, "points": points}
        for (title, model, metric, _), points in groups.items()
        if len(points) > 1
    ]


def column(length: float) -> int:
    """Return the number of the column that a context length falls into."""
    return max(i for i, edge in enumerate(EDGES) if edge <= max(length, 0))
