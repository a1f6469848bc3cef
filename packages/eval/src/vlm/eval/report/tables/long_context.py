"""Tables of long-context benchmarks: score by length and depth, by length, by last position, and by V2PE stride."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from vlm.eval.report.gather.collect import Evaluation, Row, interval_of
from vlm.eval.report.tables.reasons import table_of
from vlm.eval.scorers.mmniah import DEPTHS, cells, column_scores
from vlm.eval.scorers.mmniah import EDGES as PUBLISHED

EDGES = (0, 125, 250, 500, *PUBLISHED, *(1000 * k for k in (128, 256, 512)))
"""Lower edges of the context-length columns: the published eleven from 1k to 64k (MM-NIAH), continued both ways."""

LENGTH_VARIANT = re.compile(r"(.+?)[ -]\d+x$")
"""Benchmarks that are one set at several lengths: `digit-haystack 1x`, `digit-haystack 2x`, …"""


def lengths_together(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations of one set at several lengths, by the same model and variant, as one."""
    groups: dict[tuple[str, ...], list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        match = LENGTH_VARIANT.match(e.summary["title"])
        groups[match[1] if match else e.summary["title"], e.summary["model"], e.label].append(e)
    return [
        replace(es[0], summary={**es[0].summary, "title": title}, rows=[row for e in es for row in e.rows])
        for (title, _, _), es in groups.items()
    ]


def haystacks(e: Evaluation) -> list[dict[str, Any]]:
    """Mean score by context length (columns) and depth (rows) per group; an empty cell is None, never 0.

    MM-NIAH has the published eleven columns, and the published column score below them (an empty cell counts 0 there);
    other sets have the columns they fill. `plain` is the accuracy of all items of a column.
    """
    table = table_of(e)
    published = table is not None and table.aggregate == "mmniah"
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in e.rows:
        if row.context_length is not None and row.depth is not None and 0 <= row.depth <= 1 and row.score is not None:
            groups[row.group].append(row)
    found = [(group, _published(rows) if published else _own(rows)) for group, rows in sorted(groups.items())]
    several = len(found) > 1
    return [{**e.who, "group": group if several else "", **cell} for group, cell in found if cell]


def _published(rows: Sequence[Row]) -> dict[str, Any]:
    """The published bins; samples below 1k tokens are in no column, as published. Empty when none is left."""
    where = cells([row.context_length or 0 for row in rows], [row.depth or 0 for row in rows])
    n = (len(PUBLISHED) + 1) * DEPTHS
    sums = np.bincount(where, weights=[row.score or 0 for row in rows], minlength=n)
    counts = np.bincount(where, minlength=n)
    left_out = int(counts[:DEPTHS].sum())
    if left_out == len(rows):
        return {}
    columns = [round(float(score), 6) for score in column_scores(sums, counts.astype(float))]
    grids = [x.reshape(-1, DEPTHS)[1:].T for x in (sums, counts)]
    return _grid(PUBLISHED, *grids) | {"columns": columns, "left_out": left_out}


def _own(rows: Sequence[Row]) -> dict[str, Any]:
    where = [(min(int((r.depth or 0) * DEPTHS), DEPTHS - 1), column(r.context_length or 0)) for r in rows]
    sums, counts = np.zeros((DEPTHS, len(EDGES))), np.zeros((DEPTHS, len(EDGES)), dtype=int)
    for at, row in zip(where, rows, strict=True):
        sums[at] += row.score or 0
        counts[at] += 1
    used = slice(min(c for _, c in where), max(c for _, c in where) + 1)
    return _grid(EDGES[used], sums[:, used], counts[:, used]) | {"columns": None, "left_out": 0}


def _grid(lengths: Sequence[int], sums: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """[5, columns] sums and counts as lists: means, counts, and the plain accuracy of each column."""

    def means(total: np.ndarray, n: np.ndarray) -> list[float | None]:
        return [float(a / b) if b else None for a, b in zip(total, n, strict=True)]

    return {
        "lengths": list(lengths),
        "scores": [means(a, b) for a, b in zip(sums, counts, strict=True)],
        "counts": counts.tolist(),
        "plain": means(sums.sum(axis=0), counts.sum(axis=0)),
    }


def by_length(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Mean score per context-length column, for benchmarks whose items know their length in tokens."""
    return _curves(evaluations, "length", lambda row: row.context_length)


def by_position(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Mean score per column of the prompt's last position, for the same benchmarks where the runner recorded it.

    With a V2PE stride below the tokens of a tile the last position lies below the length.
    """
    long = [e for e in evaluations if any(row.context_length is not None for row in e.rows)]
    return _curves(long, "position", lambda row: row.max_position)


def _curves(evaluations: Sequence[Evaluation], key: str, of: Callable[[Row], float | None]) -> list[dict[str, Any]]:
    result = []
    for e in evaluations:
        bins: dict[int, list[float]] = defaultdict(list)
        for row in e.rows:
            x = of(row)
            if x is not None and x >= 0 and row.score is not None:
                bins[column(x)].append(row.score)
        if bins:
            points = [{key: EDGES[c], "value": 100 * fmean(bins[c]), "items": len(bins[c])} for c in sorted(bins)]
            result.append({**e.who, "points": points})
    return result


def by_stride(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The headline metric against the stride, where one model was run with two or more."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for e in evaluations:
        stride, metric = e.variant.get("stride"), e.metric
        if stride is not None and not e.variant.get("shuffle_images") and metric and metric["value"] is not None:
            setting = (e.summary["title"], e.summary["model"], metric["name"], str(e.variant.get("tiles")))
            groups[setting].append({"stride": stride, **interval_of(metric)})
    return [
        {"title": title, "model": model, "metric": metric, "points": points}
        for (title, model, metric, _), points in groups.items()
        if len(points) > 1
    ]


def column(length: float) -> int:
    """Number of the column that a context length falls into."""
    return max(i for i, edge in enumerate(EDGES) if edge <= max(length, 0))
