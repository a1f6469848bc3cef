"""The charts of a training stage, drawn as the report draws its own."""

from typing import TypedDict

from vlm.cli.server.views.stage import Curve, StageLog

POINTS = 500

CHARTS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "of a token", (("each step", "loss"), ("smoothed", "smooth"))),
    ("Learning rate", "lr", (("learning rate", "lr"),)),
    ("Speed", "useful tokens / s", (("tokens / s", "tokens_per_s"),)),
    ("Time of a step", "seconds", (("step", "seconds"), ("wait for data", "data_wait_s"))),
    ("Memory", "GB", (("peak so far", "memory_gb"),)),
    ("Gradient norm", "norm before clipping", (("gradient norm", "grad_norm"),)),
)
"""Title, unit, and the lines: what they are called, and their column."""


class ShownChart(TypedDict):
    """A chart: its drawing, and the points behind it, for whoever points at them or cannot see them."""

    title: str
    unit: str
    svg: str
    lines: list[dict[str, str | Curve]]


def stage_charts(log: StageLog) -> list[ShownChart]:
    """Return the charts of a stage; those without a number are left out."""
    from vlm.eval.report.render.charts import Chart, Series
    from vlm.eval.report.render.svg import line_chart

    curves, found = log.curves(POINTS), list[ShownChart]()
    for title, unit, lines in CHARTS:
        series = [Series(name, curves[column]) for name, column in lines if curves[column]]
        if series:
            svg = line_chart(Chart("live", title, "", series, "step", unit, markers=False))
            shown: list[dict[str, str | Curve]] = [
                {"name": s.name, "points": [list(p) for p in s.points]} for s in series
            ]
            found.append({"title": title, "unit": unit, "svg": svg, "lines": shown})
    return found
