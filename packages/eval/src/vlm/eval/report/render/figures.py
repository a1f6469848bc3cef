"""Figures as PNG and PDF files, drawn with matplotlib: the same charts and heat maps as on the page.

The bytes depend on the numbers and on the version of matplotlib, never on the clock or the machine's settings.
"""

import io
import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vlm.core.errors import DataError
from vlm.core.paths import as_name
from vlm.core.text import printable
from vlm.eval.report.data import Report
from vlm.eval.report.render.charts import Chart, charts
from vlm.eval.report.render.svg import color as heat_color
from vlm.eval.report.render.svg import ink, log2_ticks, short
from vlm.eval.report.tables.long_context import Haystack

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import NullLocator

COLORS = ("#0072b2", "#d55e00", "#00835f", "#b0548c", "#a67600", "#56616b")
"""The lines of the page in light mode."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e2da",
    "axes.axisbelow": True,
    "text.parse_math": False,  # a dollar in a name is no formula
    "pdf.fonttype": 42,
}

METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
"""Fields that matplotlib would fill with its version and the clock."""


def figures(report: Report) -> "dict[str, Figure]":
    """Draw accuracies, heat maps, then every chart of the page: file name without suffix -> figure.

    Raises:
        DataError: There is no number to draw.
    """
    found: dict[str, Figure] = {}
    drawn = [("accuracy", _accuracy(report))] if report.accuracy else []
    for h in report.haystacks:
        names = ("haystack", h["title"], h["group"], h["model"], h["variant"])
        drawn.append((" ".join(filter(None, names)), _heat_map(h)))
    drawn += [(f"{chart.section} {chart.title}", _lines(chart)) for chart in charts(report)]
    for title, figure in drawn:
        name = as_name(re.sub(r"[^a-z0-9.+]+", "-", title.lower()).strip("-."))
        again = sum(known == name or re.fullmatch(re.escape(name) + r"-\d+", known) is not None for known in found)
        found[f"{name}-{again + 1}" if again else name] = figure
    if not found:
        raise DataError("nothing to draw: no evaluation and no finite loss", fix="choose html, md, csv or json")
    return found


def figure_files(report: Report, suffix: str) -> dict[str, bytes]:
    """Return file name -> bytes of every figure; `suffix` is png or pdf."""
    return {f"{name}.{suffix}": _bytes(figure, suffix) for name, figure in figures(report).items()}


def sheet(report: Report) -> bytes:
    """Return all figures below each other, as one PNG."""
    from PIL import Image

    parts = [
        Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB") for data in figure_files(report, "png").values()
    ]
    size = (max((p.width for p in parts), default=1), sum(p.height for p in parts) or 1)
    whole, top = Image.new("RGB", size, "white"), 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def pages(report: Report) -> bytes:
    """Return all figures as the pages of one PDF."""
    from matplotlib.backends.backend_pdf import PdfPages

    buffer = io.BytesIO()
    with _style(), PdfPages(buffer, metadata=METADATA["pdf"]) as pdf:
        for figure in figures(report).values():
            pdf.savefig(figure)
    return buffer.getvalue()


def _bytes(figure: "Figure", suffix: str) -> bytes:
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format=suffix, dpi=160, metadata=METADATA[suffix])
    return buffer.getvalue()


def _style() -> AbstractContextManager[None]:
    """Apply matplotlib's defaults and ours on top, whatever the machine's settings are."""
    from matplotlib import style

    return style.context(["default", STYLE])


def _label(*parts: str) -> str:
    """Return names side by side, long ones without their middle: a label has to leave room for the drawing."""
    return ", ".join(printable(part, 60) for part in parts if part)


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _lines(chart: Chart) -> "Figure":
    import numpy as np

    figure, axes = _axes(6.4, 4.2)
    for number, series in enumerate(chart.series):
        color = COLORS[number % len(COLORS)]
        x, y = [p[0] for p in series.points], [p[1] for p in series.points]
        marker = "o" if chart.markers else None
        axes.plot(x, y, marker=marker, markersize=4, color=color, label=_label(series.name), linewidth=1.6)
        for p in series.points:
            if len(p) == 4:
                axes.vlines(p[0], p[2], p[3], color=color, alpha=0.5)
    if chart.log2:
        axes.set_xscale("function", functions=(lambda v: np.log2(1 + np.maximum(v, 0)), lambda v: 2**v - 1))
        values = log2_ticks(sorted({p[0] for series in chart.series for p in series.points}))
        axes.set_xticks(values, [short(v) for v in values])
        axes.xaxis.set_minor_locator(_no_ticks())
    if chart.y_range:
        axes.set_ylim(chart.y_range[0] - 2, chart.y_range[1] + 2)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.set_title(_label(chart.title, chart.about), loc="left", fontweight="bold")
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _no_ticks() -> "NullLocator":
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _heat_map(h: Haystack) -> "Figure":
    """Draw depth rows x context columns in the published colors: the number in each cell, a dot without an item."""
    columns, depths = len(h["lengths"]), len(h["scores"])
    figure, axes = _axes(max(3.2, 1.4 + 0.56 * columns), 3.4)
    for row, line in enumerate(h["scores"]):
        for x, score in enumerate(line):
            face = "#eeece6" if score is None else heat_color(score)
            axes.add_patch(_rectangle(x, row, face))
            text, shade = ("·", "#66635b") if score is None else (f"{score:.2f}", ink(score))
            axes.text(x + 0.5, row + 0.5, text, ha="center", va="center", color=shade, fontsize=8)
    about = "context length (tokens, lower edge); below it the plain accuracy of the column"
    axes.set(xlim=(0, columns), ylim=(depths, 0), xlabel=about, ylabel="depth")
    plain = ["–" if value is None else f"{value:.2f}" for value in h["plain"]]
    labels = [f"{short(edge)}\n{value}" for edge, value in zip(h["lengths"], plain, strict=True)]
    axes.set_xticks([x + 0.5 for x in range(columns)], labels)
    axes.set_yticks(range(depths + 1), [f"{d / depths:.1f}" for d in range(depths + 1)])
    axes.grid(visible=False)
    title = " · ".join(_label(part) for part in (h["title"], h["group"]) if part)
    axes.set_title(f"{title}\n{_label(h['model'], h['variant'])}", loc="left", fontsize=9)
    return figure


def _rectangle(x: float, y: float, face: str) -> "Rectangle":
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=face, edgecolor="white", linewidth=1.5)


def _accuracy(report: Report) -> "Figure":
    """Draw the headline metric of every evaluation with its interval; hollow where it is not comparable."""
    headlines = [(row, row["metrics"][0]) for row in report.accuracy if row["metrics"]]
    rows = [(row, m, value) for row, m in headlines if (value := m["value"]) is not None and value <= 100]
    figure, axes = _axes(7.2, 0.9 + 0.3 * max(1, len(rows)))
    for y, (row, m, value) in enumerate(rows):
        if m["low"] is not None and m["high"] is not None:
            axes.hlines(y, m["low"], m["high"], color=COLORS[0], alpha=0.45, linewidth=3)
        axes.plot([value], [y], "o", color=COLORS[0], fillstyle="none" if row["caveats"] else "full")
    names = [f"{row['title']}, {m['name']} · {row['model']}, {row['variant']}" for row, m, _ in rows]
    labels = [printable(name, 90) for name in names]
    axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
    axes.set(
        xlim=(-2, 102), ylim=(max(1, len(rows)) - 0.5, -0.5), xlabel="score; hollow: not comparable with published"
    )
    return figure
