"""The report as CSV, tidy: one number a line."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from vlm.eval.report.build import Report

WHERE = ("section", "benchmark", "system", "variant", "group", "metric", "x", "y")
COLUMNS = (*WHERE, "value", "low", "high", "scored", "total", "marks")
"""`x` is a length, position, stride or step, `y` a depth; `marks` says why a number is not what it seems."""

Line = dict[str, Any]


def as_csv(report: Report) -> str:
    """Every number of the report, one per line, in full precision. Times come last."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(report))
    return buffer.getvalue()


def _lines(report: Report) -> Iterator[Line]:
    for row in report.accuracy:
        who = {"benchmark": row["benchmark"], "system": row["model"], "variant": row["variant"]}
        for m in row["metrics"]:
            marks = "; ".join(filter(None, [*row["caveats"], m["note"]]))
            yield {"section": "accuracy", **who, "metric": m["name"], **_numbers(m), "marks": marks}
            counts = {"scored": m["scored"], "total": m["total"]}
            yield {"section": "strict", **who, "metric": m["name"], "value": m["strict"], **counts, "marks": marks}
    for table in report.published:
        yield from _published_lines(table)
    for b in report.blind:
        who = {"section": "blind control", "benchmark": b["benchmark"], "system": b["model"], "variant": b["variant"]}
        yield {**who, "metric": "difference", "value": b["difference"], "low": b["low"], "high": b["high"]}
    for h in report.haystacks:
        who = {"benchmark": h["title"], "system": h["model"], "variant": h["variant"], "group": h["group"]}
        for column, length in enumerate(h["lengths"]):
            for depth, line in enumerate(h["scores"]):
                counts = {"scored": h["counts"][depth][column]}
                at = {"x": length, "y": depth / len(h["scores"])}
                yield {"section": "haystack cell", **who, **at, "value": line[column], **counts}
            yield {"section": "haystack plain accuracy", **who, "x": length, "value": h["plain"][column]}
            if h["columns"]:
                yield {"section": "haystack published column", **who, "x": length, "value": h["columns"][column]}
    for section, rows, key in (
        ("by length", report.by_length, "length"),
        ("by last position", report.by_position, "position"),
    ):
        for row in rows:
            who = {"benchmark": row["title"], "system": row["model"], "variant": row["variant"]}
            for p in row["points"]:
                yield {"section": section, **who, "x": p[key], "value": p["value"], "scored": p["items"]}
    for row in report.by_stride:
        for p in row["points"]:
            who = {"benchmark": row["title"], "system": row["model"], "metric": row["metric"]}
            yield {"section": "by stride", **who, "x": p["stride"], **_numbers(p)}
    for stage in report.training:
        who = {"system": stage["run"], "variant": stage["stage"]}
        yield from ({"section": "loss", **who, "metric": "loss", "x": x, "value": y} for x, y in stage["curve"])
        yield from ({"section": "ledger", **who, "metric": k, "value": v} for k, v in stage["ledger"].items())
    for row in report.timing["evaluations"]:
        who = {"benchmark": row["benchmark"], "system": row["model"], "variant": row["variant"]}
        yield {"section": "time", **who, "metric": "seconds", "value": row["seconds"]}
    for row in report.timing["training"]:
        for metric in ("tokens_per_s", "seconds", "rss_gb"):
            who = {"system": row["run"], "variant": row["stage"]}
            yield {"section": "time", **who, "metric": metric, "value": row[metric]}
    for row in report.timing["rules"]:
        for metric in ("jobs", "seconds", "longest", "cpu_seconds", "max_rss_mb"):
            yield {
                "section": "time",
                "system": row["run"],
                "group": row["rule"],
                "metric": metric,
                "value": row[metric],
            }


def _published_lines(table: dict[str, Any]) -> Iterator[Line]:
    notes = {note["mark"]: note["text"] for note in table["footnotes"]}
    name = f"{table['system']}: {table['title']}"
    for row in table["rows"]:
        for system, cell in zip(table["systems"], row["published"], strict=True):
            marks = "; ".join(notes[mark] for mark in cell["marks"])
            if cell["value"] is not None:
                who = {"benchmark": name, "system": system["name"], "metric": row["column"]}
                yield {"section": "published", **who, "value": cell["value"], "marks": marks}
        for ours, cell in zip(table["ours"], row["ours"], strict=True):
            if cell:
                marks = "; ".join(notes[mark] for mark in cell["marks"])
                who = {"benchmark": name, "system": ours["model"], "variant": ours["variant"], "metric": row["column"]}
                yield {"section": "ours beside published", **who, **_numbers(cell), "marks": marks}
    for a in table["averages"]:
        marks = "" if a["adds_up"] else f"printed {a['printed']}"
        who = {"benchmark": name, "system": a["system"], "metric": a["column"]}
        yield {"section": "average recomputed", **who, "value": a["mean"], "marks": marks}


def _numbers(m: dict[str, Any]) -> dict[str, Any]:
    return {key: m[key] for key in ("value", "low", "high", "scored", "total")}
