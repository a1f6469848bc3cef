"""Why our number may differ from a published one: its data, the settings of the model, the scoring rule."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlm.core.errors import UnknownName
from vlm.core.home import home
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.printed import PublishedResults, load_published
from vlm.eval.report.gather.comparability import caveats_of, settings_of
from vlm.eval.saved.evaluations import Evaluation, Who


class ReasonRow(Who):
    """An evaluation, a published system, and what differs from that system's measurement."""

    system: str
    reasons: list[str]


def benchmark_of(e: Evaluation) -> Benchmark | None:
    """Return the table of an evaluation's benchmark; None for one that is not known here (any more)."""
    return _benchmark(e.summary["benchmark"], home())


@cache
def _benchmark(name: str, where: Path) -> Benchmark | None:
    try:
        return load_benchmark(name, where)
    except UnknownName:
        return None


def reason_rows(evaluations: Sequence[Evaluation]) -> list[ReasonRow]:
    """Return a row for each evaluation that has published numbers beside it."""
    rows: list[ReasonRow] = []
    for published in load_published():
        for e in evaluations:
            shown = e.summary["benchmark"].lower() in published.benchmarks
            beside = shown and settings_of(e)["template"] in published.templates
            if beside and not e.variant.get("shuffle_images"):
                rows.append({**e.who, "system": published.title, "reasons": _reasons(e, published)})
    return rows


def _reasons(e: Evaluation, published: PublishedResults) -> list[str]:
    table, ours = benchmark_of(e), settings_of(e)
    theirs = dict(published.settings)
    tiles = table.image_override(published.family).get("max_tiles") if table else None
    if tiles and ours["image rule"] == "tiles":
        theirs["max tiles"] = [tiles]
    found = caveats_of(e)
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
    other = f"the strict one scores {apart:,} answers differently and gives {strict['value']:.1f}"
    return [f"scorer: the published rule, faults included; {other}"]


def _words(values: Sequence[Any]) -> str:
    return " or ".join(
        "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values
    )
