"""The report as tidy CSV: one number a line."""

import csv
import io
from collections.abc import Iterator

from vlm.eval.report.data import Report
from vlm.eval.report.tables.published import TableBeside
from vlm.eval.saved.evaluations import MetricNumbers, Who

WHERE = ("section", "benchmark", "system", "variant", "group", "metric", "x", "y")
COLUMNS = (*WHERE, "value", "low", "high", "scored", "total", "marks")
"""`x` is a length, position, stride or step, `y` a depth; `marks` says what limits a number."""

Line = dict[str, str | int | float | None]
"""Column -> cell; columns left out are empty."""


def as_csv(report: Report) -> str:
    """Return every number of the report, one per line, in full precision. Times come last."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for section in (_accuracy, _published, _blind, _haystacks, _curves, _training, _times):
        writer.writerows({column: safe_cell(cell) for column, cell in line.items()} for line in section(report))
    return buffer.getvalue()


def safe_cell(cell: str | int | float | None) -> str | int | float | None:
    """Return a cell that no spreadsheet runs as a formula: a text that begins like one begins with an apostrophe.

    >>> safe_cell('=HYPERLINK("http://x")'), safe_cell("-1.5"), safe_cell(-1.5), safe_cell("POPE")
    ('\\'=HYPERLINK("http://x")', '-1.5', -1.5, 'POPE')
    """
    if not isinstance(cell, str) or (cell.lstrip()[:1] not in set("=+-@") and cell[:1] not in ("\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _who(row: Who, benchmark: str | None = None) -> Line:
    return {"benchmark": benchmark or row["benchmark"], "system": row["model"], "variant": row["variant"]}


def _numbers(m: MetricNumbers) -> Line:
    return {"value": m["value"], "low": m["low"], "high": m["high"], "scored": m["scored"], "total": m["total"]}


def _accuracy(report: Report) -> Iterator[Line]:
    for row in report.accuracy:
        for m in row["metrics"]:
            about = {**_who(row), "metric": m["name"], "marks": "; ".join(filter(None, [*row["caveats"], m["note"]]))}
            yield {"section": "accuracy", **about, **_numbers(m)}
            yield {"section": "strict", **about, "value": m["strict"], "scored": m["scored"], "total": m["total"]}


def _published(report: Report) -> Iterator[Line]:
    for table in report.published:
        yield from _published_table(table)


def _published_table(table: TableBeside) -> Iterator[Line]:
    notes = {note["mark"]: note["text"] for note in table["footnotes"]}
    name = f"{table['system']}: {table['title']}"

    def texts(marks: list[str]) -> str:
        return "; ".join(notes[mark] for mark in marks)

    for row in table["rows"]:
        at: Line = {"benchmark": name, "metric": row["column"]}
        for system, theirs in zip(table["systems"], row["published"], strict=True):
            if theirs["value"] is not None:
                number: Line = {"value": theirs["value"], "marks": texts(theirs["marks"])}
                yield {"section": "published", **at, "system": system["name"], **number}
        for head, ours in zip(table["ours"], row["ours"], strict=True):
            if ours:
                who: Line = {"system": head["model"], "variant": head["variant"], "marks": texts(ours["marks"])}
                yield {"section": "ours beside published", **at, **who, **_numbers(ours)}
    for a in table["averages"]:
        yield {
            "section": "average recomputed",
            "benchmark": name,
            "system": a["system"],
            "metric": a["column"],
            "value": a["mean"],
            "marks": "" if a["adds_up"] else f"printed {a['printed']}",
        }


def _blind(report: Report) -> Iterator[Line]:
    for b in report.blind:
        number: Line = {"metric": "difference", "value": b["difference"], "low": b["low"], "high": b["high"]}
        yield {"section": "blind control", **_who(b), **number}


def _haystacks(report: Report) -> Iterator[Line]:
    for h in report.haystacks:
        who = {**_who(h, h["title"]), "group": h["group"]}
        for column, length in enumerate(h["lengths"]):
            for depth, line in enumerate(h["scores"]):
                at: Line = {"x": length, "y": depth / len(h["scores"])}
                cell: Line = {"value": line[column], "scored": h["counts"][depth][column]}
                yield {"section": "haystack cell", **who, **at, **cell}
            yield {"section": "haystack plain accuracy", **who, "x": length, "value": h["plain"][column]}
            if h["columns"]:
                yield {"section": "haystack published column", **who, "x": length, "value": h["columns"][column]}


def _curves(report: Report) -> Iterator[Line]:
    for by_length in report.by_length:
        for p in by_length["points"]:
            point: Line = {"x": p["length"], "value": p["value"], "scored": p["items"]}
            yield {"section": "by length", **_who(by_length, by_length["title"]), **point}
    for by_position in report.by_position:
        for q in by_position["points"]:
            point = {"x": q["position"], "value": q["value"], "scored": q["items"]}
            yield {"section": "by last position", **_who(by_position, by_position["title"]), **point}
    for row in report.by_stride:
        for s in row["points"]:
            who: Line = {"benchmark": row["title"], "system": row["model"], "metric": row["metric"]}
            yield {"section": "by stride", **who, "x": s["stride"], **_numbers(s)}


def _training(report: Report) -> Iterator[Line]:
    for stage in report.training:
        who: Line = {"system": stage["run"], "variant": stage["stage"]}
        yield from ({"section": "loss", **who, "metric": "loss", "x": x, "value": y} for x, y in stage["curve"])
        yield from ({"section": "ledger", **who, "metric": k, "value": v} for k, v in stage["ledger"].items())


def _times(report: Report) -> Iterator[Line]:
    for row in report.timing["evaluations"]:
        yield {"section": "time", **_who(row), "metric": "seconds", "value": row["seconds"]}
    for stage in report.timing["training"]:
        who: Line = {"system": stage["run"], "variant": stage["stage"]}
        speed: Line = {key: stage[key] for key in ("tokens_per_s", "seconds", "rss_gb")}
        yield from ({"section": "time", **who, "metric": metric, "value": value} for metric, value in speed.items())
    for rule in report.timing["rules"]:
        who = {"system": rule["run"], "group": rule["rule"]}
        cost: Line = {key: rule[key] for key in ("jobs", "seconds", "longest", "cpu_seconds", "max_rss_mb")}
        yield from ({"section": "time", **who, "metric": metric, "value": value} for metric, value in cost.items())
