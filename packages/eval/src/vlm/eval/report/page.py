"""Write the report: one HTML page that needs no network, `report.json` beside it, Markdown and CSV on request."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vlm.core.errors import DataError
from vlm.core.home import write_atomic, write_json
from vlm.eval.report import plots
from vlm.eval.report.collect import find_evaluations, find_stages
from vlm.eval.report.plots import Series, line_chart
from vlm.eval.report.samples import pick
from vlm.eval.report.tables import build

ASSETS = Path(__file__).parent / "assets"


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    samples_per_benchmark: int = 60,
    seed: int = 0,
    markdown: bool = False,
    table: bool = False,
) -> dict[str, Any]:
    """Write `out` (HTML) and beside it `report.json`, `report.md` and `accuracy.csv` if asked; return the tables.

    Usage: `write_report([Path("runs/demo")], Path("report/index.html"))`

    Raises:
        DataError: nothing to report below `folders`, or a damaged file; names it.
    """
    evaluations, stages = find_evaluations(folders), find_stages(folders)
    if not evaluations and not stages:
        raise DataError(
            f"no metrics.jsonl and no results.jsonl below {', '.join(map(str, folders))}",
            fix="run `vlm train` or `vlm eval` first, or name their run folder",
        )
    report = build(evaluations, stages)
    browser = pick(evaluations, samples_per_benchmark, seed)
    report["samples"] = {"shown": browser["shown"], "seed": seed}
    write_atomic(out, html(report, browser))
    write_json(out.parent / "report.json", report)
    if markdown:
        write_atomic(out.parent / "report.md", as_markdown(report))
    if table:
        write_atomic(out.parent / "accuracy.csv", as_csv(report))
    return report


def html(report: dict[str, Any], browser: dict[str, Any]) -> str:
    """The page. Values are escaped by the template; embedded JSON cannot close its script element."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"short": plots.short, "colour": plots.colour, "ink": plots.ink, "one": "{:.1f}".format}
    template = environment.from_string((ASSETS / "page.html.j2").read_text(encoding="utf-8"))
    data = json.dumps(browser, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c")
    return template.render(
        r=report,
        shown=browser["shown"],
        charts=_charts(report),
        css=Markup((ASSETS / "style.css").read_text(encoding="utf-8")),
        js=Markup((ASSETS / "app.js").read_text(encoding="utf-8")),
        data=Markup(data),
    )


def _charts(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Title, SVG and legend of every chart, by section."""
    loss = [
        _chart(f"{t['run']} / {t['stage']}", [Series("loss", t["curve"])], "step", "loss", markers=False)
        for t in report["training"]
        if t["curve"]
    ]
    length = []
    for title, rows in _grouped(report["by_length"], "title"):
        series = [
            Series(f"{r['model']} · {r['variant']}", [(p["length"], p["value"]) for p in r["points"]]) for r in rows
        ]
        length.append(
            _chart(title, series, "context length (tokens, lower edge)", "score", log2=True, y_range=(0, 100))
        )
    stride = []
    for title, rows in _grouped(report["by_stride"], "title"):
        series = [Series(f"{r['model']}, {r['metric']}", [_with_interval(p) for p in r["points"]]) for r in rows]
        stride.append(_chart(title, series, "V2PE stride", "score", log2=True, y_range=(0, 100)))
    return {"loss": loss, "length": length, "stride": stride}


def _with_interval(point: dict[str, Any]) -> tuple[float, ...]:
    at = (point["stride"], point["value"])
    return at if point["low"] is None else (*at, point["low"], point["high"])


def _chart(title: str, series: Sequence[Series], x_label: str, y_label: str, **options: Any) -> dict[str, Any]:
    svg = line_chart(series, x_label, y_label, **options)
    return {"title": title, "svg": Markup(svg), "legend": [s.name for s in series] if len(series) > 1 else []}


def _grouped(rows: Iterable[dict[str, Any]], key: str) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return list(groups.items())


COLUMNS = (
    "benchmark",
    "model",
    "variant",
    "metric",
    "value",
    "low",
    "high",
    "strict",
    "scored",
    "total",
    "outcomes",
    "caveats",
)


def _accuracy_lines(report: dict[str, Any]) -> list[list[str]]:
    lines = []
    for row in report["accuracy"]:
        for m in row["metrics"]:
            numbers = ["" if m[k] is None else f"{m[k]:.2f}" for k in ("value", "low", "high", "strict")]
            outcomes = " ".join(f"{kind}={n}" for kind, n in row["outcomes"].items())
            counts = [str(m["scored"]), str(m["total"]), outcomes, "; ".join(row["caveats"])]
            lines.append([row["title"], row["model"], row["variant"], m["name"], *numbers, *counts])
    return lines


def as_csv(report: dict[str, Any]) -> str:
    """Every metric of every evaluation, one per line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([COLUMNS, *_accuracy_lines(report)])
    return buffer.getvalue()


def as_markdown(report: dict[str, Any]) -> str:
    """The accuracy table and the published numbers as Markdown."""
    lines = ["# Evaluation report", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in _accuracy_lines(report)]
    for group in report["published"]:
        lines += [
            "",
            f"## Published: {group['title']}",
            "",
            "| system | metric | value | source |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {p['system']} | {p['metric']} | {p['value']} | {p['source']} |"
            for m in group["metrics"]
            for p in m["published"]
        ]
    return "\n".join(lines) + "\n"
