"""Tables of evaluations: accuracies, items that the two scorers score differently, blind control, provenance."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict, cast

import numpy as np

from vlm.eval.measures.stats import cluster_sums, interval, ratio, replicates
from vlm.eval.printed import load_published
from vlm.eval.report.gather.comparability import caveats_of
from vlm.eval.run.outcomes import KINDS
from vlm.eval.run.summary import MetricRow, Provenance, PublishedValue
from vlm.eval.saved.evaluations import Evaluation, MetricNumbers, Who, numbers_of


class ModelWeights(TypedDict):
    """A model and the digest of its weights."""

    model: str
    weights: str


class ReportHead(TypedDict):
    """The head of the page: weights of each model, software, and which benchmarks are miniatures."""

    models: list[ModelWeights]
    versions: dict[str, str]
    mini: list[str]


class BothMetrics(MetricRow):
    """A metric by the published rule, and its value by the strict one."""

    strict: float | None


class AccuracyRow(Who):
    """All metrics of an evaluation, its outcomes, and what limits a comparison (`caveats`)."""

    metrics: list[BothMetrics]
    outcomes: dict[str, int]
    caveats: list[str]
    items: int
    empty_answers: int
    unreadable_answers: int


class ScorerExample(TypedDict):
    """An item with different scores by the two scorers."""

    id: str
    completion: str | None
    gold: Any
    score: float | None
    strict_score: float | None
    why: str


class ScorerDifference(Who):
    """How many items of an evaluation the published and the strict scorer score differently, with the first five."""

    items: int
    of: int
    higher_upstream: int
    examples: list[ScorerExample]


class OurNumber(MetricNumbers):
    """Our value of a metric beside published ones."""

    system: str
    caveats: list[str]


class ComparedMetric(TypedDict):
    """A metric with published numbers and ours."""

    metric: str
    ours: list[OurNumber]
    published: list[PublishedValue]


class OtherPublished(TypedDict):
    """A benchmark outside the three systems' tables that has published numbers (a user's own)."""

    benchmark: str
    title: str
    metrics: list[ComparedMetric]


class BlindRow(Who):
    """Mean item scores in points with the right images and with exchanged ones, and their paired difference.

    `low` and `high` bound the difference: a 95 % bootstrap over clusters of items; None when no resample differs.
    """

    sighted: float
    blind: float
    difference: float
    low: float | None
    high: float | None
    items: int


class ProvenanceRow(Who, total=False):
    """What produced an evaluation; None where it was not recorded."""

    folder: str
    command: str | None
    data: str | None
    git_commit: str | None
    python: str | None
    platform: str | None
    versions: dict[str, str | None] | None
    weights: str
    scorers: str
    decode: dict[str, Any]


class EvaluationTime(Who):
    """Seconds of an evaluation, and items computed, over all its runs."""

    seconds: float
    computed: int


def report_head(evaluations: Sequence[Evaluation]) -> ReportHead:
    """Return the head of the page."""
    weights = {e.summary["model"]: e.summary.get("provenance", {}).get("weights") or "unknown" for e in evaluations}
    run = next((e.run for e in evaluations if e.run), None) or Provenance()
    versions = {
        "python": run.get("python"),
        **(run.get("versions") or {}),
        "commit": (run.get("git_commit") or "")[:12],
    }
    return {
        "models": [{"model": model, "weights": weights[model]} for model in sorted(weights)],
        "versions": {name: version for name, version in versions.items() if version},
        "mini": sorted({e.summary["title"] for e in evaluations if e.summary["data"].get("mini")}),
    }


def report_warnings(evaluations: Sequence[Evaluation], unfinished: Sequence[Path]) -> list[str]:
    """Return what a reader must know before comparing two numbers of the report.

    Mixed versions, different scorers, different weights under one name, and evaluations without results.
    """
    found = []
    versions: dict[str, set[str]] = defaultdict(set)
    weights: dict[str, set[str]] = defaultdict(set)
    for e in evaluations:
        about = e.summary.get("provenance", {})
        weights[e.summary["model"]].add(str(about.get("weights"))[:12])
        versions["scorers"].add(str(about.get("scorers"))[:12])
        for name, version in {**(e.run.get("versions") or {}), "commit": e.run.get("git_commit")}.items():
            versions[name].add(str(version))
        if e.not_numbers:
            found.append(f"{e.folder}: {e.not_numbers:,} scores that are not numbers; they count as unscored")
    mixed = {name: ", ".join(sorted(known)) for name, known in sorted(versions.items()) if len(known) > 1}
    if "scorers" in mixed:
        known = mixed.pop("scorers")
        found.append(f"scored by different versions of the scorers ({known}); rerun the same `vlm eval` to score again")
    found += [f"mixed versions of {name}: {known}" for name, known in mixed.items()]
    found += [f"{n} names several weights: {', '.join(sorted(w))}" for n, w in sorted(weights.items()) if len(w) > 1]
    return found + [f"begun and not finished: {folder}; rerun the same `vlm eval`" for folder in unfinished]


def accuracy_row(e: Evaluation) -> AccuracyRow:
    """Return all metrics of an evaluation, upstream and strict, with outcomes and caveats."""
    strict = {m["name"]: m["value"] for m in e.summary["strict_metrics"]}
    counts = e.summary["outcomes"]
    return {
        **e.who,
        "metrics": [{**m, "strict": strict.get(m["name"])} for m in e.summary["metrics"]],
        "outcomes": {kind: counts[kind] for kind in KINDS if kind in counts},
        "caveats": caveats_of(e),
        "items": len(e.rows),
        "empty_answers": e.summary.get("empty_answers", 0),
        "unreadable_answers": e.summary.get("unreadable_answers", 0),
    }


def scorer_difference(e: Evaluation) -> ScorerDifference | None:
    """Return how many items have different scores by the two scorers; None without one."""
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
        "examples": [cast(ScorerExample, {k: row.get(k) for k in keys}) for row in rows],
    }


def other_published(evaluations: Sequence[Evaluation]) -> list[OtherPublished]:
    """Return published numbers of benchmarks outside the three systems' tables, with our metrics of the same name."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    shown = {name for published in load_published() for name in published.benchmarks}
    for e in evaluations:
        if e.summary.get("published") and e.summary["benchmark"].lower() not in shown:
            groups[e.summary["benchmark"]].append(e)
    result: list[OtherPublished] = []
    for name, group in groups.items():
        theirs = group[0].summary["published"]
        metrics: list[ComparedMetric] = [
            {"metric": metric, "ours": _ours(group, metric), "published": [p for p in theirs if p["metric"] == metric]}
            for metric in dict.fromkeys(p["metric"] for p in theirs)
        ]
        result.append({"benchmark": name, "title": group[0].summary["title"], "metrics": metrics})
    return result


def _ours(group: Sequence[Evaluation], metric: str) -> list[OurNumber]:
    return [
        {"system": f"{e.summary['model']} · {e.label}", **numbers_of(m), "caveats": caveats_of(e)}
        for e in group
        if not e.variant.get("shuffle_images")
        for m in e.summary["metrics"]
        if m["name"] == metric
    ]


def blind_rows(evaluations: Sequence[Evaluation]) -> list[BlindRow]:
    """Pair each blind control with the evaluation of the same model and settings with the right images."""

    def setting(e: Evaluation) -> tuple[str, ...]:
        keys = ("stride", "positions", "tiles", "image_rule", "max_new_tokens", "edition")
        values = (str(e.variant.get(key)) for key in keys)
        return (e.summary["benchmark"], e.summary["model"], *values)

    sighted = {setting(e): e for e in evaluations if not e.variant.get("shuffle_images")}
    result: list[BlindRow] = []
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
            row: BlindRow = {
                **e.who,
                "sighted": 100 * seen,
                "blind": 100 * unseen,
                "difference": 100 * (seen - unseen),
                "low": low,
                "high": high,
                "items": len(both),
            }
            result.append(row)
    return result


def provenance_row(e: Evaluation) -> ProvenanceRow:
    """Return what produced an evaluation."""
    return {
        **e.who,
        "folder": str(e.folder),
        "command": e.run.get("command"),
        "data": e.run.get("data"),
        "git_commit": e.run.get("git_commit"),
        "python": e.run.get("python"),
        "platform": e.run.get("platform"),
        "versions": e.run.get("versions"),
        **cast(ProvenanceRow, e.summary.get("provenance", {})),
    }


def evaluation_time(e: Evaluation) -> EvaluationTime:
    """Return seconds and items over all runs of an evaluation."""
    runs = e.timing.get("runs", [])
    return {**e.who, "seconds": sum(r["seconds"] for r in runs), "computed": sum(r["computed"] for r in runs)}
