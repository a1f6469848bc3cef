"""The report as one HTML page that needs no network."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vlm.eval.report.build import Report
from vlm.eval.report.render import svg as plots
from vlm.eval.report.render.charts import charts

ASSETS = Path(__file__).parent.parent / "assets"


def html(report: Report) -> str:
    """The page. Values are escaped by the template; embedded JSON cannot close its script element."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "short": plots.short,
        "colour": plots.colour,
        "ink": plots.ink,
        "one": "{:.1f}".format,
        "duration": duration,
    }
    template = environment.from_string((ASSETS / "page.html.j2").read_text(encoding="utf-8"))
    data = json.dumps(report.browser, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c")
    return template.render(
        r=report,
        charts=_drawn(report),
        systems=[(name, list(group)) for name, group in groupby(report.published, lambda table: table["system"])],
        graphs=[{**g, "svg": Markup(g["svg"]) if g["svg"] else ""} for g in report.graphs],
        css=Markup((ASSETS / "style.css").read_text(encoding="utf-8")),
        js=Markup((ASSETS / "app.js").read_text(encoding="utf-8")),
        data=Markup(data),
    )


def _drawn(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Title, SVG and legend of every chart, by section."""
    found: dict[str, list[dict[str, Any]]] = {"loss": [], "length": [], "position": [], "stride": []}
    for chart in charts(report):
        legend = [s.name for s in chart.series] if len(chart.series) > 1 else []
        about = {"title": chart.title, "about": chart.about, "legend": legend}
        found[chart.section].append({**about, "svg": Markup(plots.line_chart(chart))})
    return found


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
