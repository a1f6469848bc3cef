"""Tables of long-context benchmarks: score by length and depth, by length, and by V2PE stride."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from vlm.eval.report.collect import Evaluation, interval_of

THOUSANDS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 128, 256, 512)
EDGES = (0, 125, 250, 500, *(1000 * k for k in THOUSANDS))
"""Lower edges of the context-length columns: the published eleven from 1k to 64k (MM-NIAH), continued both ways."""

DEPTHS = 5
"""Depth rows of a haystack, as published; depth 1.0 belongs to the last."""


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
    """Mean score by context length (columns) and depth (rows) per group; an empty cell is None, never 0."""
    groups: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in e.rows:
        if row.context_length is not None and row.depth is not None and row.score is not None:
            depth = min(int(row.depth * DEPTHS), DEPTHS - 1)
            groups[row.group][depth, column(row.context_length)].append(row.score)
    result = []
    for group, cells in sorted(groups.items()):
        used = [c for _, c in cells]
        columns = range(min(used), max(used) + 1)
        grid = [[cells.get((depth, c), []) for c in columns] for depth in range(DEPTHS)]
        result.append(
            {
                **e.who,
                "group": group if len(groups) > 1 else "",
                "lengths": [EDGES[c] for c in columns],
                "scores": [[fmean(cell) if cell else None for cell in line] for line in grid],
                "counts": [[len(cell) for cell in line] for line in grid],
            }
        )
    return result


def by_length(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Mean score per context-length column, for benchmarks whose items know their length."""
    result = []
    for e in evaluations:
        bins: dict[int, list[float]] = defaultdict(list)
        for row in e.rows:
            if row.context_length is not None and row.score is not None:
                bins[column(row.context_length)].append(row.score)
        if bins:
            points = [{"length": EDGES[c], "value": 100 * fmean(bins[c]), "items": len(bins[c])} for c in sorted(bins)]
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
