"""The numbers of a report, as one JSON-ready dict. Whatever depends on the clock sits below `timing`."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from vlm.eval.outcomes import KINDS
from vlm.eval.report.collect import Evaluation, Stage, interval_of
from vlm.eval.report.long_context import by_length, by_stride, haystacks, lengths_together
from vlm.eval.stats import cluster_sums, interval, ratio, replicates

Table = list[dict[str, Any]]

CURVE_POINTS = 400


def build(evaluations: Sequence[Evaluation], stages: Sequence[Stage]) -> dict[str, Any]:
    """All tables of the report."""
    return {
        "models": sorted({e.summary["model"] for e in evaluations}),
        "benchmarks": sorted({e.summary["title"] for e in evaluations}),
        "ran": ran(evaluations),
        "training": [training(stage) for stage in stages],
        "accuracy": [accuracy(e) for e in evaluations],
        "differences": [d for e in evaluations if (d := differences(e))],
        "published": published(evaluations),
        "blind": blind(evaluations),
        "haystacks": [h for e in lengths_together(evaluations) for h in haystacks(e)],
        "by_length": by_length(lengths_together(evaluations)),
        "by_stride": by_stride(evaluations),
        "provenance": [provenance(e) for e in evaluations],
        "timing": {"evaluations": [timing(e) for e in evaluations], "training": [speed(stage) for stage in stages]},
    }


def ran(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What the head of the page says: weights of each model, software, and which benchmarks were miniatures."""
    weights = {e.summary["model"]: e.summary.get("provenance", {}).get("weights") or "unknown" for e in evaluations}
    run = next((e.run for e in evaluations if e.run), {})
    versions = {
        "python": run.get("python"),
        **(run.get("versions") or {}),
        "commit": (run.get("git_commit") or "")[:12],
    }
    return {
        "models": [{"model": model, "weights": weights[model]} for model in sorted(weights)],
        "versions": {name: version for name, version in versions.items() if version},
        "mini": sorted({e.summary["title"] for e in evaluations if e.summary.get("data", {}).get("mini")}),
    }


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
    return {**e.who, "metrics": metrics, "outcomes": outcomes, "caveats": caveats, "items": len(e.rows)}


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
        **e.who,
        "items": len(apart),
        "of": len(e.rows),
        "higher_upstream": sum((r.score or 0) > (r.strict or 0) for r in apart),
        "examples": [{k: row.get(k) for k in keys} for row in rows],
    }


def published(evaluations: Sequence[Evaluation]) -> Table:
    """Per benchmark and metric the published numbers, and beside them our metric of the same name."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    for e in evaluations:
        if e.summary.get("published"):
            groups[e.summary["benchmark"]].append(e)
    result = []
    for name, group in groups.items():
        theirs = group[0].summary["published"]
        names = dict.fromkeys(p["metric"] for p in theirs)
        metrics = [
            {"metric": metric, "ours": _ours(group, metric), "published": [p for p in theirs if p["metric"] == metric]}
            for metric in names
        ]
        result.append({"benchmark": name, "title": group[0].summary["title"], "metrics": metrics})
    return result


def _ours(group: Sequence[Evaluation], metric: str) -> Table:
    return [
        {"system": f"{e.summary['model']} · {e.label}", **interval_of(m), "caveats": incomparable(e)}
        for e in group
        if not e.variant.get("shuffle_images")
        for m in e.summary["metrics"]
        if m["name"] == metric
    ]


def blind(evaluations: Sequence[Evaluation]) -> Table:
    """Mean item score with the right images and with exchanged ones, and their paired difference.

    Its 95 % interval is a bootstrap over clusters of items; None when no resample differs.
    """

    def setting(e: Evaluation) -> tuple:
        return (
            e.summary["benchmark"],
            e.summary["model"],
            *(str(e.variant.get(k)) for k in ("stride", "positions", "tiles")),
        )

    sighted = {setting(e): e for e in evaluations if not e.variant.get("shuffle_images")}
    result = []
    for control in evaluations:
        e = sighted.get(setting(control))
        if e is None or not control.variant.get("shuffle_images"):
            continue
        other = {r.id: r.score for r in control.rows}
        both = [(a, b, r.cluster) for r in e.rows if (a := r.score) is not None and (b := other.get(r.id)) is not None]
        if both:
            seen, unseen = fmean(a for a, _, _ in both), fmean(b for _, b, _ in both)
            gaps = cluster_sums(np.array([[a - b, 1.0] for a, b, _ in both]), [cluster for _, _, cluster in both])
            low, high = (bound and 100 * bound for bound in interval(replicates(gaps, ratio)))
            means = {"sighted": 100 * seen, "blind": 100 * unseen, "difference": 100 * (seen - unseen)}
            result.append({**e.who, **means, "low": low, "high": high, "items": len(both)})
    return result


def provenance(e: Evaluation) -> dict[str, Any]:
    """What produced an evaluation."""
    run = e.run
    recorded = {k: run.get(k) for k in ("command", "data", "git_commit", "python", "platform", "versions")}
    return {**e.who, "folder": str(e.folder), **recorded, **e.summary.get("provenance", {})}


def timing(e: Evaluation) -> dict[str, Any]:
    """Seconds and items over all runs of an evaluation."""
    runs = e.timing.get("runs", [])
    return {**e.who, "seconds": sum(r["seconds"] for r in runs), "computed": sum(r["computed"] for r in runs)}


def speed(stage: Stage) -> dict[str, Any]:
    """Median tokens per second of a stage."""
    rates = [r["tokens_per_s"] for r in stage.records if _finite(r.get("tokens_per_s"))]
    return {"run": stage.run, "stage": stage.name, "tokens_per_s": median(rates) if rates else None}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
