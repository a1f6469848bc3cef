"""Yes or no from replies, and POPE's F1 of three categories."""

import math
import re
from collections.abc import Sequence

import numpy as np

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import Answers, Metric, ResultRow, bounds_of, plain
from vlm.eval.measures.stats import Array, Interval, wilson
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, as_answer, takes


def pope_parse(text: str, *, compat: Compat = "upstream") -> str:
    """Read a reply as yes or no. Source: the published evaluators.

    upstream: "no" iff one of the space-separated words before the first period is exactly No, no or not, else "yes"; an
    empty reply is a yes. fixed: "yes", "no", or "unknown" when the words say neither or both.
    """
    if compat == "upstream":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    found = re.findall(r"[\w']+", text.lower().replace("’", "'"))
    if found and (first := str(found[0])) in ("yes", "no"):
        return first
    yes = "yes" in found
    no = any(word in ("no", "not") or word.endswith("n't") for word in found)
    return "unknown" if yes == no else "yes" if yes else "no"


def _pope_counts(answers: Answers) -> Array:
    """Return TP, FP, TN, FN as 0 or 1, [rows, 4], from labels and scores: `unknown` is wrong whatever the label."""
    right = answers.values == 1.0
    yes = np.array([row["gold"] == "yes" for row in answers.rows], dtype=bool)
    return np.stack([right & yes, ~right & ~yes, right & ~yes, ~right & yes], axis=1).astype(float)


def _f1(totals: Array) -> Array:
    """Return F1 of counts, [..., 4] -> [...]; NaN without positives in labels and replies."""
    tp, fp, fn = totals[..., 0], totals[..., 1], totals[..., 3]
    size = 2 * tp + fp + fn
    found: Array = np.divide(2 * tp, size, out=np.full(size.shape, np.nan), where=size > 0)
    return found


def pope(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean F1 of the categories, then F1, accuracy, precision, recall and yes ratio of each.

    A category in which a published ratio divides by zero has no F1 in upstream mode, as published.
    """
    groups = list(benchmark.options["categories"])
    answers = Answers(rows, compat)
    each: list[Metric] = []
    f1s: list[float | None] = []
    for group in groups:
        part = Answers([row for row in rows if row["group"] == group], compat)
        counts = _pope_counts(part) if part.rows else np.zeros((0, 4))
        tp, fp, tn, fn = counts.sum(axis=0)
        note = "" if tp else f"no true positive among {len(part.rows)} answers: the published F1 divides by zero"
        f1 = float(_f1(counts.sum(axis=0))) if tp or compat == "fixed" else float("nan")
        f1s.append(None if math.isnan(f1) else f1)
        bounds: Interval = (None, None)
        if part.rows and not math.isnan(f1):
            bounds = bounds_of(part.bootstrap(counts, _f1, seed=0), f1, len(set(part.clusters)))
        each.append(part.metric(f"F1/{group}", f1s[-1], bounds, note if f1s[-1] is None else ""))
        each.append(part.mean(f"accuracy/{group}"))
        for name, top, bottom in (
            ("precision", tp, tp + fp),
            ("recall", tp, tp + fn),
            ("yes ratio", tp + fp, tp + fp + tn + fn),
        ):
            each.append(part.metric(f"{name}/{group}", top / bottom if bottom else None, wilson(top, bottom)))
    missing = [group for group, f1 in zip(groups, f1s, strict=True) if f1 is None]
    if missing:
        headline = answers.metric("F1", None, note=f"no F1 for {', '.join(missing)}")
    else:
        counts = _pope_counts(answers)
        columns = np.concatenate([counts * [[row["group"] == g] for row in answers.rows] for g in groups], axis=1)

        def statistic(totals: Array) -> Array:
            mean_f1: Array = _f1(totals.reshape(-1, len(groups), 4)).mean(axis=-1)
            return mean_f1

        value = float(np.mean([f1 for f1 in f1s if f1 is not None]))
        bounds = bounds_of(answers.bootstrap(columns, statistic, seed=0), value, len(set(answers.clusters)))
        headline = answers.metric("F1", value, bounds)
    return [headline, *plain(rows, compat)[:1], *each]


SCORERS = {"pope_parse": Scorer(pope_parse, takes("text"), as_answer)}
AGGREGATES = {"pope": pope}
