"""Two evaluations of one benchmark, sample by sample: what moved, by how much beyond chance, and what caused it.

found = compare(find_pair(Path("runs/a"), Path("runs/b"))[0])

Everything is read from results.jsonl and summary.json; nothing is computed again.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlm.core.errors import DataError
from vlm.eval.measures.stats import cluster_sums, interval, ratio, replicates
from vlm.eval.report.gather.collect import Evaluation, find_evaluations

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
"""Cause -> what it means. A sample whose answer changed has all causes that apply: they cannot be told apart."""


@dataclass(frozen=True)
class Sample:
    """One item in both evaluations. Scores are None where there is none."""

    id: str
    group: str
    kind: Kind
    causes: list[str]
    before: float | None
    after: float | None
    answers: tuple[str | None, str | None]


@dataclass(frozen=True)
class Change:
    """The difference of the mean score over the items scored in both, in points (0-100), and whether it is chance.

    `test`: McNemar's exact test for 0/1 scores of independent items, else a paired bootstrap over clusters.
    """

    items: int
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    test: str


def find_pair(a: Path, b: Path) -> list[tuple[Evaluation, Evaluation]]:
    """The evaluations below A and below B that belong together: of one benchmark, and of one variant where there are
    several of it.

    Raises:
        DataError: none below one of them, or none that belong together.
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


def compare(pair: tuple[Evaluation, Evaluation]) -> dict[str, Any]:
    """JSON-ready: the evaluations, what differs between them, the change with its interval and p, the samples that
    moved with their causes, and the numbers of each kind and cause.

    Raises:
        DataError: the evaluations have no item in common.
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
    samples = [sample(a.read(rows[0][i].offset), b.read(rows[1][i].offset), differ) for i in shared]
    moved = [s for s in samples if s.kind != "same"]
    clusters = [rows[0][i].cluster for i in shared]
    metrics = [{m["name"]: m["value"] for m in e.summary["metrics"]} for e in pair]
    return {
        "benchmark": a.summary["benchmark"],
        "a": _about(a),
        "b": _about(b),
        "differences": differ,
        "items": {"both": len(shared), "a alone": len(rows[0]) - len(shared), "b alone": len(rows[1]) - len(shared)},
        "change": asdict(change(samples, clusters)),
        "groups": {g: asdict(c) for g, c in _by_group(samples, clusters).items()},
        "kinds": dict(Counter(s.kind for s in samples)),
        "causes": dict(Counter(" + ".join(s.causes) for s in moved)),
        "metrics": [{"name": n, "a": metrics[0][n], "b": metrics[1][n]} for n in metrics[0] if n in metrics[1]],
        "moved": [asdict(s) for s in moved],
    }


def differences(a: Evaluation, b: Evaluation) -> dict[str, Any]:
    """What the two were run with, where it differs: model, decode (setting by setting), scorer, imported."""
    one, other = (e.summary.get("provenance", {}) for e in (a, b))
    found: dict[str, Any] = {}
    if one.get("weights") != other.get("weights"):
        found["model"] = [one.get("weights"), other.get("weights")]
    settings = [_flat(p.get("decode") or {}) for p in (one, other)]
    decode = {
        key: [settings[0].get(key), settings[1].get(key)]
        for key in sorted(settings[0].keys() | settings[1].keys())
        if settings[0].get(key) != settings[1].get(key)
    }
    if "imported" in a.summary or "imported" in b.summary:
        found.pop("model", None)
        found["imported"] = [e.summary.get("imported", {}).get("files") for e in (a, b)]
    elif decode:
        found["decode"] = decode
    if one.get("scorers") != other.get("scorers"):
        found["scorer"] = [one.get("scorers"), other.get("scorers")]
    return found


def sample(a: dict[str, Any], b: dict[str, Any], differ: dict[str, Any]) -> Sample:
    """One item from its two rows of results.jsonl. `differ`: what differs between the evaluations as wholes."""
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
    return Sample(a["id"], a["group"], kind, causes, before, after, (a["completion"], b["completion"]))


def _scoring(a: dict[str, Any], b: dict[str, Any], differ: dict[str, Any]) -> list[str]:
    """Why one answer got two scores."""
    causes = ["data"] if (a["gold"], a["meta"]) != (b["gold"], b["meta"]) else []
    causes += ["judge"] if a.get("judge") != b.get("judge") else []
    causes += ["scorer"] if "scorer" in differ else []
    return causes or (["imported"] if "imported" in differ else ["chance"])


def _answering(a: dict[str, Any], b: dict[str, Any], differ: dict[str, Any]) -> list[str]:
    """Why there are two answers."""
    causes: list[str] = [cause for cause in ("model", "decode", "imported") if cause in differ]
    causes += ["prompt"] if a["prompt"] != b["prompt"] else []
    causes += ["data"] if [Path(p).name for p in a["images"]] != [Path(p).name for p in b["images"]] else []
    if not causes and "scorer" not in differ and a["key"] != b["key"] and a.get("judge") == b.get("judge"):
        causes = ["media or limits"]
    return causes or ["chance"]


def change(samples: Sequence[Sample], clusters: Sequence[str]) -> Change:
    """The paired change of the items scored in both; all None without one."""
    pairs = [(s.before, s.after, c) for s, c in zip(samples, clusters, strict=True)]
    scored = [(x, y, c) for x, y, c in pairs if x is not None and y is not None]
    if not scored:
        return Change(0, None, None, None, None, None, None, "no item is scored in both")
    before, after = np.array([x for x, _, _ in scored]), np.array([y for _, y, _ in scored])
    names = [c for _, _, c in scored]
    delta = after - before
    sums = cluster_sums(np.stack([delta, np.ones_like(delta)], axis=1), names)
    drawn = replicates(sums, ratio)
    low, high = interval(drawn)
    if np.isin(np.concatenate([before, after]), (0.0, 1.0)).all() and len(sums) == len(delta):
        p, test = mcnemar(int((delta > 0).sum()), int((delta < 0).sum())), "McNemar, exact"
    else:  # the share of resamples beyond zero on the rarer side, both sides; ties count on both
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p, test = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)), "paired bootstrap over clusters"
    means = {"before": 100 * before.mean(), "after": 100 * after.mean(), "difference": 100 * delta.mean()}
    bounds = {"low": None if low is None else 100 * low, "high": None if high is None else 100 * high}
    return Change(len(scored), **{name: float(x) for name, x in means.items()}, **bounds, p=p, test=test)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of gained against lost items: a fair coin. Source: McNemar 1947.

    >>> mcnemar(1, 7)
    0.0703125
    """
    n, rarer = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    terms = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(rarer + 1)]
    return min(1.0, 2 * sum(math.exp(term - n * math.log(2)) for term in terms))


def _by_group(samples: Sequence[Sample], clusters: Sequence[str]) -> dict[str, Change]:
    groups: dict[str, list[tuple[Sample, str]]] = {}
    for pair in zip(samples, clusters, strict=True):
        groups.setdefault(pair[0].group, []).append(pair)
    if len(groups) < 2:
        return {}
    return {name: change([s for s, _ in pairs], [c for _, c in pairs]) for name, pairs in groups.items()}


def _about(e: Evaluation) -> dict[str, Any]:
    names = {key: e.summary[key] for key in ("model", "variant", "outcomes")}
    return {**names, "folder": str(e.folder), "label": e.label}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
