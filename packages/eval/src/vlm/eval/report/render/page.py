"""The report as one HTML page that needs no network."""

import json
from itertools import groupby
from pathlib import Path
from typing import TypedDict

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vlm.eval.report.data import Report
from vlm.eval.report.render import svg
from vlm.eval.report.render.charts import charts
from vlm.eval.report.render.matrix import matrix, title_of
from vlm.eval.report.render.rule_graph import draw_graph

ASSETS = Path(__file__).parent.parent / "assets"


class DrawnChart(TypedDict):
    """A chart as the template shows it; `legend` is empty for one line."""

    title: str
    about: str
    legend: list[str]
    svg: Markup


class DrawnGraph(TypedDict):
    """A rule graph as the template shows it: drawn here, or an image."""

    run: str
    svg: Markup | None
    image: str | None


def as_html(report: Report) -> str:
    """Return the page. The template escapes values; embedded JSON cannot close its script element."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "short": svg.short,
        "color": svg.color,
        "ink": svg.ink,
        "one": "{:.1f}".format,
        "duration": duration,
    }
    template = environment.from_string((ASSETS / "page.html.j2").read_text(encoding="utf-8"))
    beside = [table for table in report.published if table["ours"]]
    data = json.dumps(report.browser, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c")
    return template.render(
        r=report,
        charts=_draw_charts(report),
        title=title_of(report),
        matrix=matrix(report),
        beside=beside,
        systems=[(name, list(group)) for name, group in groupby(beside, lambda table: table["system"])],
        grids=[(h, [n for n, value in enumerate(h["plain"]) if value is not None]) for h in report.haystacks],
        graphs=_draw_graphs(report),
        css=Markup("".join((ASSETS / name).read_text(encoding="utf-8") for name in ("base.css", "style.css"))),
        js=Markup((ASSETS / "app.js").read_text(encoding="utf-8")),
        data=Markup(data),
    )


def _draw_graphs(report: Report) -> list[DrawnGraph]:
    drawn: list[DrawnGraph] = [{"run": g.run, "svg": Markup(draw_graph(g)), "image": None} for g in report.graphs]
    return drawn + [{"run": d.run, "svg": None, "image": d.url} for d in report.drawings]


def _draw_charts(report: Report) -> dict[str, list[DrawnChart]]:
    """Return title, SVG and legend of every chart, by section."""
    found: dict[str, list[DrawnChart]] = {"loss": [], "length": [], "position": [], "stride": []}
    for chart in charts(report):
        legend = [s.name for s in chart.series] if len(chart.series) > 1 else []
        drawn = Markup(svg.line_chart(chart))
        found[chart.section].append({"title": chart.title, "about": chart.about, "legend": legend, "svg": drawn})
    return found


def duration(seconds: float) -> str:
    """Return seconds as a person reads them: 4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
