"""Compare two evaluations of one benchmark, sample by sample: what moved, whether beyond chance, and what caused it.

    comparison = compare_evaluations(find_pairs(Path("runs/a"), Path("runs/b"))[0])
    comparison["change"]["difference"]                   # points of the mean score

Everything is read from results.jsonl and summary.json; nothing is scored again.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from vlm.core.errors import DataError
from vlm.eval.measures.rows import ResultRow
from vlm.eval.measures.stats import cluster_sums, interval, ratio, replicates
from vlm.eval.run.summary import Variant
from vlm.eval.saved.evaluations import Evaluation, find_evaluations

Kind = Literal["gained", "lost", "changed", "answered", "unanswered", "same"]

KINDS: dict[Kind, str] = {
    "gained": "a higher score in B",
    "lost": "a lower score in B",
    "changed": "another answer, the same score",
    "answered": "scored in B alone",
    "unanswered": "scored in A alone",
    "same": "the same answer and score",
}

CAUSES = {
    "model": "other weights",
    "decode": "other settings of positions, image rule, template, precision, …",
    "prompt": "another question text",
    "data": "other media or another reference answer",
    "media or limits": "the same question, but the key of its answer differs: pixels, or the budget of new tokens",
    "scorer": "another source of the scorers",
    "judge": "another verdict of a judge on the same answer",
    "imported": "saved predictions: what made them is not known",
    "chance": "nothing recorded differs: memory ran out, a server that is not deterministic, or another machine",
}
"""Cause -> what it means. A sample whose answer changed has all causes that apply: they cannot be distinguished."""


class SampleChange(TypedDict):
    """One item in both evaluations. Scores are None where there is none."""

    id: str
    group: str
    kind: Kind
    causes: list[str]
    before: float | None
    after: float | None
    answers: tuple[str | None, str | None]


class Change(TypedDict):
    """The difference of the mean score over the items scored in both, in points (0-100), and whether it is chance.

    `p` is by `test`: McNemar's exact test for 0/1 scores of independent items, else a paired bootstrap over clusters.
    """

    items: int
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    test: str


class Differences(TypedDict, total=False):
    """What two evaluations were run with, where it differs: [value in A, value in B]; `decode` for each setting."""

    model: list[str | None]
    imported: list[Any]
    decode: dict[str, list[Any]]
    scorer: list[str | None]


class ComparedEvaluation(TypedDict):
    """One of the two evaluations."""

    model: str
    variant: Variant
    outcomes: dict[str, int]
    folder: str
    label: str


class MetricPair(TypedDict):
    """A metric that both evaluations have."""

    name: str
    a: float | None
    b: float | None


class Comparison(TypedDict):
    """Two evaluations compared: what differs between them, the change of the mean score, and the samples that moved.

    `kinds` and `causes` count samples.
    """

    benchmark: str
    a: ComparedEvaluation
    b: ComparedEvaluation
    differences: Differences
    items: dict[str, int]
    change: Change
    groups: dict[str, Change]
    kinds: dict[Kind, int]
    causes: dict[str, int]
    metrics: list[MetricPair]
    moved: list[SampleChange]


def find_pairs(a: Path, b: Path) -> list[tuple[Evaluation, Evaluation]]:
    """Pair the evaluations below A and below B by benchmark, and by variant where there are several of one benchmark.

    Raises:
        DataError: No evaluation below one of them, or no pair.

    >>> [a.folder.name for a, b in find_pairs(Path("runs/a"), Path("runs/b"))]  # doctest: +SKIP
    ['default', 'stride64']
    """
    both = [find_evaluations([folder]) for folder in (a, b)]
    for folder, found in zip((a, b), both, strict=True):
        if not found:
            raise DataError(f"no evaluation below {folder}", expected="a folder with results.jsonl and summary.json")
    pairs = []
    for one in both[0]:
        same = [other for other in both[1] if other.summary["benchmark"] == one.summary["benchmark"]]
        alone = len(same) == 1 and sum(e.summary["benchmark"] == one.summary["benchmark"] for e in both[0]) == 1
        pairs += [(one, other) for other in same if alone or other.folder.name == one.folder.name]
    if not pairs:
        names = [sorted({f"{e.summary['benchmark']} ({e.folder.name})" for e in found}) for found in both]
        raise DataError(
            f"different benchmarks: {', '.join(names[0])} in A, {', '.join(names[1])} in B",
            expected="two evaluations of one benchmark, or two runs that share one",
            fix="name the folders of the two results.jsonl",
        )
    return pairs


def compare_evaluations(pair: tuple[Evaluation, Evaluation]) -> Comparison:
    """Compare two evaluations; the result is ready for JSON.

    Raises:
        DataError: The evaluations have no item in common.

    >>> compare_evaluations(find_pairs(Path("runs/a"), Path("runs/b"))[0])["causes"]  # doctest: +SKIP
    {'model': 12, 'chance': 1}
    """
    a, b = pair
    rows = [{row.id: row for row in e.rows} for e in pair]
    shared = [i for i in rows[0] if i in rows[1]]
    if not shared:
        examples = [", ".join(list(found)[:3]) for found in rows]
        raise DataError(
            f"{a.folder} and {b.folder} have no item in common: ids {examples[0]} … against {examples[1]} …",
            expected="evaluations of the same items (miniatures of one seed, one split, overlapping --limit)",
        )
    differ = differences(a, b)
    with a.reading() as one, b.reading() as other:
        samples = [sample_change(one(rows[0][i].offset), other(rows[1][i].offset), differ) for i in shared]
    moved = [s for s in samples if s["kind"] != "same"]
    clusters = [rows[0][i].cluster for i in shared]
    metrics = [{m["name"]: m["value"] for m in e.summary["metrics"]} for e in pair]
    return {
        "benchmark": a.summary["benchmark"],
        "a": _about(a),
        "b": _about(b),
        "differences": differ,
        "items": {"both": len(shared), "a alone": len(rows[0]) - len(shared), "b alone": len(rows[1]) - len(shared)},
        "change": mean_change(samples, clusters),
        "groups": _by_group(samples, clusters),
        "kinds": dict(Counter(s["kind"] for s in samples)),
        "causes": dict(Counter(" + ".join(s["causes"]) for s in moved)),
        "metrics": [{"name": n, "a": metrics[0][n], "b": metrics[1][n]} for n in metrics[0] if n in metrics[1]],
        "moved": moved,
    }


def differences(a: Evaluation, b: Evaluation) -> Differences:
    """Return what the two were run with, where it differs."""
    one, other = (e.summary.get("provenance", {}) for e in (a, b))
    found: Differences = {}
    imported = "imported" in a.summary or "imported" in b.summary
    if one.get("weights") != other.get("weights") and not imported:
        found["model"] = [one.get("weights"), other.get("weights")]
    settings = [_flat(p.get("decode") or {}) for p in (one, other)]
    decode = {
        key: [settings[0].get(key), settings[1].get(key)]
        for key in sorted(settings[0].keys() | settings[1].keys())
        if settings[0].get(key) != settings[1].get(key)
    }
    if imported:
        found["imported"] = [e.summary["imported"]["files"] if "imported" in e.summary else None for e in (a, b)]
    elif decode:
        found["decode"] = decode
    if one.get("scorers") != other.get("scorers"):
        found["scorer"] = [one.get("scorers"), other.get("scorers")]
    return found


def sample_change(a: ResultRow, b: ResultRow, differ: Differences) -> SampleChange:
    """Compare one item's two rows of results.jsonl. `differ`: what differs between the evaluations as wholes."""
    before, after = a["score"], b["score"]
    same_answer = a["completion"] == b["completion"]
    if before is None or after is None:
        kind: Kind = "answered" if after is not None else "unanswered" if before is not None else "changed"
    elif before != after:
        kind = "gained" if after > before else "lost"
    else:
        kind = "changed"
    if kind == "changed" and same_answer and before == after and a["outcome"] == b["outcome"]:
        kind = "same"
    causes = [] if kind == "same" else _scoring(a, b, differ) if same_answer else _answering(a, b, differ)
    if not same_answer and "scorer" in differ and kind in ("gained", "lost"):
        causes.append("scorer")
    return {
        "id": a["id"],
        "group": a["group"],
        "kind": kind,
        "causes": causes,
        "before": before,
        "after": after,
        "answers": (a["completion"], b["completion"]),
    }


def _scoring(a: ResultRow, b: ResultRow, differ: Differences) -> list[str]:
    """Return why one answer has two scores."""
    causes = ["data"] if (a["gold"], a["meta"]) != (b["gold"], b["meta"]) else []
    causes += ["judge"] if a.get("judge") != b.get("judge") else []
    causes += ["scorer"] if "scorer" in differ else []
    return causes or (["imported"] if "imported" in differ else ["chance"])


def _answering(a: ResultRow, b: ResultRow, differ: Differences) -> list[str]:
    """Return why there are two answers."""
    causes: list[str] = [cause for cause in ("model", "decode", "imported") if cause in differ]
    causes += ["prompt"] if a["prompt"] != b["prompt"] else []
    causes += ["data"] if [Path(p).name for p in a["images"]] != [Path(p).name for p in b["images"]] else []
    if not causes and "scorer" not in differ and a["key"] != b["key"] and a.get("judge") == b.get("judge"):
        causes = ["media or limits"]
    return causes or ["chance"]


def mean_change(samples: Sequence[SampleChange], clusters: Sequence[str]) -> Change:
    """Return the paired change over the items scored in both; its numbers are None without one."""
    pairs = [(s["before"], s["after"], c) for s, c in zip(samples, clusters, strict=True)]
    scored = [(x, y, c) for x, y, c in pairs if x is not None and y is not None]
    if not scored:
        return {
            "items": 0,
            "before": None,
            "after": None,
            "difference": None,
            "low": None,
            "high": None,
            "p": None,
            "test": "no item is scored in both",
        }
    before, after = np.array([x for x, _, _ in scored]), np.array([y for _, y, _ in scored])
    names = [c for _, _, c in scored]
    delta = after - before
    sums = cluster_sums(np.stack([delta, np.ones_like(delta)], axis=1), names)
    drawn = replicates(sums, ratio)
    low, high = interval(drawn)
    if np.isin(np.concatenate([before, after]), (0.0, 1.0)).all() and len(sums) == len(delta):
        p, test = mcnemar(int((delta > 0).sum()), int((delta < 0).sum())), "McNemar, exact"
    else:  # twice the share of resamples beyond zero on the rarer side; ties count on both sides
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p, test = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)), "paired bootstrap over clusters"
    return {
        "items": len(scored),
        "before": float(100 * before.mean()),
        "after": float(100 * after.mean()),
        "difference": float(100 * delta.mean()),
        "low": None if low is None else 100 * low,
        "high": None if high is None else 100 * high,
        "p": p,
        "test": test,
    }


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p of gained against lost items under a fair coin. Source: McNemar 1947.

    >>> round(mcnemar(1, 7), 4)
    0.0703
    """
    n, rarer = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    terms = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(rarer + 1)]
    return min(1.0, 2 * sum(math.exp(term - n * math.log(2)) for term in terms))


def _by_group(samples: Sequence[SampleChange], clusters: Sequence[str]) -> dict[str, Change]:
    groups: dict[str, list[tuple[SampleChange, str]]] = {}
    for pair in zip(samples, clusters, strict=True):
        groups.setdefault(pair[0]["group"], []).append(pair)
    if len(groups) < 2:
        return {}
    return {name: mean_change([s for s, _ in pairs], [c for _, c in pairs]) for name, pairs in groups.items()}


def _about(e: Evaluation) -> ComparedEvaluation:
    return {
        "model": e.summary["model"],
        "variant": e.summary["variant"],
        "outcomes": e.summary["outcomes"],
        "folder": str(e.folder),
        "label": e.label,
    }


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
