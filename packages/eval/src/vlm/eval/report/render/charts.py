"""The line charts of a report, described once: the page draws them as SVG, the figure files with matplotlib."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vlm.eval.report.data import Report
from vlm.eval.report.tables.long_context import StridePoint
from vlm.eval.saved.evaluations import Who

R = TypeVar("R")


@dataclass(frozen=True)
class Series:
    """A named line; a point is (x, y) or (x, y, low, high)."""

    name: str
    points: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Chart:
    """A line chart. With `log2` the x axis is log2(1 + x) and its ticks are the data's own x values."""

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
    """Return all line charts: losses, score by length, by last position, by stride."""
    found = [
        Chart("loss", t["stage"], t["run"], [Series("loss", t["curve"])], "step", "loss", markers=False)
        for t in report.training
        if t["curve"]
    ]

    def scores(section: str, title: str, about: str, lines: list[Series], x_label: str) -> None:
        found.append(Chart(section, title, about, lines, x_label, "score", log2=True, y_range=(0, 100)))

    for title, lengths in _grouped(report.by_length, lambda row: row["title"]):
        lines = [Series(_name(r), [(p["length"], p["value"]) for p in r["points"]]) for r in lengths]
        scores("length", title, "by length", lines, "context length (tokens, lower edge)")
    for title, positions in _grouped(report.by_position, lambda row: row["title"]):
        lines = [Series(_name(r), [(p["position"], p["value"]) for p in r["points"]]) for r in positions]
        scores("position", title, "by last position", lines, "last position of the prompt (lower edge)")
    for title, strides in _grouped(report.by_stride, lambda row: row["title"]):
        lines = [Series(f"{r['model']}, {r['metric']}", [_with_interval(p) for p in r["points"]]) for r in strides]
        scores("stride", title, "by stride", lines, "V2PE stride")
    return found


def _name(row: Who) -> str:
    return f"{row['model']}, {row['variant']}"


def _with_interval(point: StridePoint) -> tuple[float, ...]:
    value, low, high = point["value"] or 0.0, point["low"], point["high"]
    at = (point["stride"], value)
    return at if low is None or high is None else (*at, low, high)


def _grouped(rows: Iterable[R], key: Callable[[R], str]) -> list[tuple[str, list[R]]]:
    groups: dict[str, list[R]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())
