"""Why a number of ours may differ from a published one: which data, how it was asked, by which rule it was scored."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlm.core.errors import UnknownName
from vlm.core.home import home
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.report.gather.collect import Evaluation, asked, incomparable
from vlm.eval.report.gather.published import Published, load_published


def table_of(e: Evaluation) -> Benchmark | None:
    """The table of an evaluation's benchmark; None for one that is not known here (any more)."""
    return _table(e.summary["benchmark"], home())


@cache
def _table(name: str, where: Path) -> Benchmark | None:
    try:
        return load_benchmark(name, where)
    except UnknownName:
        return None


def reasons(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Per evaluation that stands beside published numbers: the system, and what differs from its measurement."""
    found = []
    for published in load_published():
        columns = [column for table in published.tables for column in table.columns]
        shown = {column.benchmark.lower() for column in columns if column.benchmark}
        own = [*published.settings["template"], None]
        for e in evaluations:
            beside = e.summary["benchmark"].lower() in shown and asked(e)["template"] in own
            if beside and not e.variant.get("shuffle_images"):
                found.append({**e.who, "system": published.title, "reasons": _reasons(e, published)})
    return found


def _reasons(e: Evaluation, published: Published) -> list[str]:
    table, ours = table_of(e), asked(e)
    theirs = dict(published.settings)
    tiles = table.image_override(published.family).get("max_tiles") if table else None
    if tiles and ours["image rule"] == "tiles":
        theirs["max tiles"] = [tiles]
    found = incomparable(e)
    for key, same in theirs.items():
        if ours[key] is None and key != "stride":
            found.append(f"{key}: not recorded; published {_words(same)}")
        elif ours[key] not in same:
            found.append(f"{key}: {_words([ours[key]])}; published {_words(same)}")
    if imported := e.summary.get("imported"):
        wrong = ", ".join(f"{about['n']:,} {kind}" for kind, about in imported["problems"].items())
        found.append(f"predictions read from a file ({imported['format']}){': ' if wrong else ''}{wrong}")
    found += _scorer(e)
    metric = e.metric
    return found + ([metric["note"]] if metric and metric["note"] else []) + (table.notes if table else [])


def _scorer(e: Evaluation) -> list[str]:
    apart = sum(row.score != row.strict for row in e.rows)
    strict = next(iter(e.summary["strict_metrics"]), None)
    if not apart or strict is None or strict["value"] is None:
        return []
    other = f"the strict one judges {apart:,} answers otherwise and gives {strict['value']:.1f}"
    return [f"scorer: the published rule, faults included; {other}"]


def _words(values: Sequence[Any]) -> str:
    return " or ".join(
        "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values
    )
