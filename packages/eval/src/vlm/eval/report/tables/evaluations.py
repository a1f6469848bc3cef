"""Tables of evaluations: accuracies, scorers that differ, blind control, provenance, and what to be warned of."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from vlm.eval.measures.stats import cluster_sums, interval, ratio, replicates
from vlm.eval.report.gather.collect import Evaluation, incomparable, interval_of
from vlm.eval.report.gather.published import in_tables
from vlm.eval.run.outcomes import KINDS

Rows = list[dict[str, Any]]


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
        "mini": sorted({e.summary["title"] for e in evaluations if e.summary["data"].get("mini")}),
    }


def warnings(evaluations: Sequence[Evaluation], unfinished: Sequence[Path]) -> list[str]:
    """What a reader must know before comparing two numbers of this report: mixed versions, other scorers, other weights
    under one name, evaluations without results."""
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
        found.append(f"scored by different versions of the scorers ({known}); the same `vlm eval` scores afresh")
    found += [f"mixed versions of {name}: {known}" for name, known in mixed.items()]
    found += [f"{n} names several weights: {', '.join(sorted(w))}" for n, w in sorted(weights.items()) if len(w) > 1]
    return found + [f"begun and not finished: {folder}; run the same `vlm eval` again" for folder in unfinished]


def accuracy(e: Evaluation) -> dict[str, Any]:
    """All metrics of an evaluation, upstream and strict, with outcomes and why it may not be comparable."""
    strict = {m["name"]: m["value"] for m in e.summary["strict_metrics"]}
    metrics = [{**m, "strict": strict.get(m["name"])} for m in e.summary["metrics"]]
    counts = e.summary["outcomes"]
    outcomes = {kind: counts[kind] for kind in KINDS if kind in counts}
    about = {"caveats": incomparable(e), "items": len(e.rows), "empty_answers": e.summary.get("empty_answers", 0)}
    return {**e.who, "metrics": metrics, "outcomes": outcomes, **about}


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


def other_published(evaluations: Sequence[Evaluation]) -> Rows:
    """Published numbers of benchmarks outside the three tables (a user's own), and our metric of the same name."""
    groups: dict[str, list[Evaluation]] = defaultdict(list)
    shown = in_tables()
    for e in evaluations:
        if e.summary.get("published") and e.summary["benchmark"].lower() not in shown:
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


def _ours(group: Sequence[Evaluation], metric: str) -> Rows:
    return [
        {"system": f"{e.summary['model']} · {e.label}", **interval_of(m), "caveats": incomparable(e)}
        for e in group
        if not e.variant.get("shuffle_images")
        for m in e.summary["metrics"]
        if m["name"] == metric
    ]


def blind(evaluations: Sequence[Evaluation]) -> Rows:
    """Mean item score with the right images and with exchanged ones, and their paired difference.

    Its 95 % interval is a bootstrap over clusters of items; None when no resample differs.
    """

    def setting(e: Evaluation) -> tuple:
        values = (str(e.variant.get(key)) for key in ("stride", "positions", "tiles"))
        return (e.summary["benchmark"], e.summary["model"], *values)

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
    keys = ("command", "data", "git_commit", "python", "platform", "versions")
    recorded = {key: e.run.get(key) for key in keys}
    return {**e.who, "folder": str(e.folder), **recorded, **e.summary.get("provenance", {})}


def timing(e: Evaluation) -> dict[str, Any]:
    """Seconds and items over all runs of an evaluation."""
    runs = e.timing.get("runs", [])
    return {**e.who, "seconds": sum(r["seconds"] for r in runs), "computed": sum(r["computed"] for r in runs)}
