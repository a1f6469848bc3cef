"""The line charts of a report, described once: the page draws them as SVG, the figure files with matplotlib."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.eval.report.build import Report


@dataclass(frozen=True)
class Series:
    """A named line; a point is (x, y) or (x, y, low, high)."""

    name: str
    points: Sequence[tuple[float, ...]]


@dataclass(frozen=True)
class Chart:
    """With `log2` the x axis is log2(1 + x) and its ticks are the data's own x values."""

    section: str
    title: str
    about: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log2: bool = False
    y_range: tuple[float, float] | None = None
    markers: bool = True


def charts(report: Report) -> list[Chart]:
    """All line charts: losses, score against length, against the last position, against the stride."""
    found = [
        Chart("loss", t["stage"], t["run"], [Series("loss", t["curve"])], "step", "loss", markers=False)
        for t in report.training
        if t["curve"]
    ]
    for section, about, rows, label in (
        ("length", "by length", report.by_length, "context length (tokens, lower edge)"),
        ("position", "by last position", report.by_position, "last position of the prompt (lower edge)"),
    ):
        for title, group in _grouped(rows, "title"):
            lines = [
                Series(f"{r['model']}, {r['variant']}", [(p[section], p["value"]) for p in r["points"]]) for r in group
            ]
            found.append(Chart(section, title, about, lines, label, "score", log2=True, y_range=(0, 100)))
    for title, group in _grouped(report.by_stride, "title"):
        lines = [Series(f"{r['model']}, {r['metric']}", [_with_interval(p) for p in r["points"]]) for r in group]
        found.append(Chart("stride", title, "by stride", lines, "V2PE stride", "score", log2=True, y_range=(0, 100)))
    return found


def _with_interval(point: dict[str, Any]) -> tuple[float, ...]:
    at = (point["stride"], point["value"])
    return at if point["low"] is None else (*at, point["low"], point["high"])


def _grouped(rows: Iterable[dict[str, Any]], key: str) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return list(groups.items())
