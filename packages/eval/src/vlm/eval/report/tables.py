"""The numbers of a report, as one JSON-ready dict. Whatever depends on the clock sits below `timing`."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from vlm.eval.outcomes import KINDS
from vlm.eval.report.collect import Evaluation, Row, Stage

Table = list[dict[str, Any]]

EDGES = (0, 125, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000, 128000, 256000, 512000)
"""Lower edges of the context-length columns: the published eleven from 1k to 64k (MM-NIAH), continued both ways."""

DEPTHS = 5
"""Depth rows of a haystack, as published; depth 1.0 belongs to the last."""

CURVE_POINTS = 400


def build(evaluations: Sequence[Evaluation], stages: Sequence[Stage]) -> dict[str, Any]:
    """All tables of the report."""
    return {
        "models": sorted({e.summary["model"] for e in evaluations}),
        "benchmarks": sorted({e.summary["title"] for e in evaluations}),
        "training": [training(stage) for stage in stages],
        "accuracy": [accuracy(e) for e in evaluations],
        "differences": [d for e in evaluations if (d := differences(e))],
        "published": published(evaluations),
        "blind": blind(evaluations),
        "haystacks": [h for e in evaluations for h in haystacks(e)],
        "by_length": by_length(evaluations),
        "by_stride": by_stride(evaluations),
        "provenance": [provenance(e) for e in evaluations],
        "timing": {"evaluations": [timing(e) for e in evaluations], "training": [speed(stage) for stage in stages]},
    }


def who(e: Evaluation) -> dict[str, Any]:
    """The columns every evaluation table begins with."""
    return {"benchmark": e.summary["benchmark"], "title": e.summary["title"], "model": e.summary["model"], "variant": e.label}


def training(stage: Stage) -> dict[str, Any]:
    """Loss curve (at most 400 points, evenly thinned, last one kept) and totals of a stage."""
    records = [r for r in stage.records if _finite(r.get("loss"))]
    step = max(1, math.ceil(len(records) / CURVE_POINTS))
    thin = records[::step] + (records[-1:] if records and (len(records) - 1) % step else [])
    padding = [r["padding_share"] for r in records if _finite(r.get("padding_share"))]
    return {
        "run": stage.run,
        "stage": stage.name,
        "steps": stage.records[-1]["step"] if stage.records else 0,
        "first_loss": records[0]["loss"] if records else None,
        "last_loss": fmean(r["loss"] for r in records[-10:]) if records else None,
        "useful_tokens": sum(r.get("useful_tokens") or 0 for r in stage.records),
        "padding_share": fmean(padding) if padding else None,
        "not_finite": len(stage.records) - len(records),
        "curve": [[r["step"], r["loss"]] for r in thin],
    }


def accuracy(e: Evaluation) -> dict[str, Any]:
    """All metrics of an evaluation, upstream and strict, with outcomes and why it may not be comparable."""
    strict = {m["name"]: m["value"] for m in e.summary.get("strict_metrics", [])}
    metrics = [{**m, "strict": strict.get(m["name"])} for m in e.summary.get("metrics", [])]
    caveats = incomparable(e)
    counts = e.summary.get("outcomes", {})
    outcomes = {kind: counts[kind] for kind in KINDS if kind in counts}
    return {**who(e), "metrics": metrics, "outcomes": outcomes, "caveats": caveats, "items": len(e.rows)}


def incomparable(e: Evaluation) -> list[str]:
    """Reasons why the number must not be set against a published one; empty when none is known."""
    data = e.summary.get("data", {})
    reasons = ["miniature data"] if data.get("mini") else []
    if data.get("limit") and data["limit"] < data.get("available", math.inf):
        reasons.append(f"first {data['limit']:,} of {data.get('available', 0):,} items")
    if e.variant.get("shuffle_images"):
        reasons.append("images exchanged on purpose")
    unscored = sum(n for kind, n in e.summary.get("outcomes", {}).items() if kind in ("oom", "error", "refused"))
    return reasons + ([f"{unscored:,} items unscored"] if unscored else [])


def differences(e: Evaluation) -> dict[str, Any] | None:
    """How many items the published and the strict scorer judge differently, with the first five."""
    apart = [r for r in e.rows if r.score != r.strict]
    if not apart:
        return None
    rows = [e.read(r.offset) for r in apart[:5]]
    keys = ("id", "completion", "gold", "score", "strict_score", "why")
    return {
        **who(e),
        "items": len(apart),
        "of": len(e.rows),
        "higher_upstream": sum((r.score or 0) > (r.strict or 0) for r in apart),
        "examples": [{k: row.get(k) for k in keys} for row in rows],
    }


def published(evaluations: Sequence[Evaluation]) -> Table:
    """Per benchmark the published numbers, and ours beside them."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        if e.summary.get("published"):
            groups[e.summary["benchmark"]].append(e)
    result = []
    for name, group in groups.items():
        ours = [
            {"system": f"{e.summary['model']} · {e.label}", "metric": m["name"], **_interval(m), "caveats": incomparable(e)}
            for e in group
            if not e.variant.get("shuffle_images") and (m := e.metric)
        ]
        result.append({"benchmark": name, "title": group[0].summary["title"], "ours": ours, "published": group[0].summary["published"]})
    return result


def blind(evaluations: Sequence[Evaluation]) -> Table:
    """Mean item score with the right images and with exchanged ones, and their paired difference (95 % interval)."""

    def setting(e: Evaluation) -> tuple:
        return (e.summary["benchmark"], e.summary["model"], *(str(e.variant.get(k)) for k in ("stride", "positions", "tiles")))

    sighted = {setting(e): e for e in evaluations if not e.variant.get("shuffle_images")}
    result = []
    for control in evaluations:
        e = sighted.get(setting(control))
        if e is None or not control.variant.get("shuffle_images"):
            continue
        other = {r.id: r.score for r in control.rows}
        pairs = [(r.score, other[r.id]) for r in e.rows if r.score is not None and other.get(r.id) is not None]
        if pairs:
            gaps = [100 * (a - b) for a, b in pairs]
            mean, half = fmean(gaps), 1.96 * _standard_error(gaps)
            seen, unseen = (100 * fmean(side) for side in zip(*pairs, strict=True))
            interval = {"difference": mean, "low": mean - half, "high": mean + half, "items": len(pairs)}
            result.append({**who(e), "sighted": seen, "blind": unseen, **interval})
    return result


def haystacks(e: Evaluation) -> Table:
    """Mean score by context length (columns) and depth (rows); an empty cell is None, never 0."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in e.rows:
        if row.context_length is not None and row.depth is not None and row.score is not None:
            groups[row.group].append(row)
    result = []
    for group, rows in sorted(groups.items()):
        columns = range(min(_column(r) for r in rows), max(_column(r) for r in rows) + 1)
        cells: dict[tuple[int, int], list[float]] = defaultdict(list)
        for r in rows:
            cells[min(int(r.depth * DEPTHS), DEPTHS - 1), _column(r)].append(r.score)
        grid = [[cells.get((depth, column), []) for column in columns] for depth in range(DEPTHS)]
        result.append(
            {
                **who(e),
                "group": group if len(groups) > 1 else "",
                "lengths": [EDGES[c] for c in columns],
                "scores": [[fmean(cell) if cell else None for cell in line] for line in grid],
                "counts": [[len(cell) for cell in line] for line in grid],
            }
        )
    return result


def by_length(evaluations: Sequence[Evaluation]) -> Table:
    """Mean score per context-length column, for benchmarks whose items know their length."""
    result = []
    for e in evaluations:
        bins: dict[int, list[float]] = defaultdict(list)
        for row in e.rows:
            if row.context_length is not None and row.score is not None:
                bins[_column(row)].append(row.score)
        if bins:
            points = [{"length": EDGES[c], "value": 100 * fmean(bins[c]), "items": len(bins[c])} for c in sorted(bins)]
            result.append({**who(e), "points": points})
    return result


def by_stride(evaluations: Sequence[Evaluation]) -> Table:
    """The headline metric against the stride, where one model was run with two or more."""
    groups: dict[tuple, list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        if e.variant.get("stride") is not None and not e.variant.get("shuffle_images") and e.metric:
            groups[e.summary["benchmark"], e.summary["model"], str(e.variant.get("tiles"))].append(e)
    return [
        {
            "title": group[0].summary["title"],
            "model": group[0].summary["model"],
            "metric": group[0].metric["name"],
            "points": [{"stride": e.variant["stride"], **_interval(e.metric)} for e in group],
        }
        for group in groups.values()
        if len(group) > 1
    ]


def provenance(e: Evaluation) -> dict[str, Any]:
    """What produced an evaluation."""
    run = e.run
    recorded = {k: run.get(k) for k in ("command", "data", "git_commit", "python", "platform", "versions")}
    return {**who(e), "folder": str(e.folder), **recorded, **e.summary.get("provenance", {})}


def timing(e: Evaluation) -> dict[str, Any]:
    """Seconds and items over all runs of an evaluation."""
    runs = e.timing.get("runs", [])
    return {**who(e), "seconds": sum(r["seconds"] for r in runs), "computed": sum(r["computed"] for r in runs)}


def speed(stage: Stage) -> dict[str, Any]:
    """Median tokens per second of a stage."""
    rates = [r["tokens_per_s"] for r in stage.records if _finite(r.get("tokens_per_s"))]
    return {"run": stage.run, "stage": stage.name, "tokens_per_s": median(rates) if rates else None}


def _interval(metric: dict[str, Any]) -> dict[str, Any]:
    return {key: metric[key] for key in ("value", "low", "high", "scored", "total")}


def _column(row: Row) -> int:
    return max(i for i, edge in enumerate(EDGES) if edge <= max(row.context_length, 0))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = fmean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
