"""Published evaluation scripts (GQA, POPE, MME, MM-NIAH): from files of raw replies to the totals that they print.

No benchmark table uses them: a run scores reply by reply, and aggregates with intervals. They are here under the names
of the golden fixtures, so that tests can compare scorers and aggregates with what the scripts print.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm.core.errors import DataError
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.gqa import gqa_accuracy_single
from vlm.eval.scorers.mme import TASKS, mme_parse
from vlm.eval.scorers.mmniah import (
    DEPTHS,
    EDGES,
    cells,
    column_scores,
    mmniah_choice,
    mmniah_counting,
    mmniah_text,
)
from vlm.eval.scorers.scorer import Scorer
from vlm.eval.scorers.yesno import pope_parse

PERFECT = 200.0
"""Points of a task of MME with every reply right: 100 for the replies, 100 for the images."""


def gqa_official(items: Sequence[Mapping[str, str]], *, compat: Compat = "upstream") -> dict[str, float]:
    """Return percentages (two decimals) `binary` (`structural` is not query), `open` and `accuracy`; 0 for no items.

    upstream: predictions are converted before. fixed: raw replies are converted here.
    """

    def percent(kinds: tuple[bool, ...]) -> float:
        chosen = [item for item in items if (item["structural"] == "query") in kinds]
        right = sum(
            item["prediction"] == item["answer"]
            if compat == "upstream"
            else gqa_accuracy_single(item["answer"], item["prediction"], compat="fixed")
            for item in chosen
        )
        return round(right / len(chosen) * 100, 2) if chosen else 0.0

    return {"binary": percent((False,)), "open": percent((True,)), "accuracy": percent((True, False))}


def pope_metrics(texts: Sequence[str], labels: Sequence[str], *, compat: Compat = "upstream") -> dict[str, Any]:
    """Return TP, FP, TN, FN (yes is positive), accuracy, precision, recall, f1, yes_ratio of one category of POPE.

    Ratios are fractions. upstream: paired by order, the longer list is cut. fixed: the lists must be equally long, an
    unknown reply is wrong whatever the label, undefined ratios are None. Source: the published evaluators.

    Raises:
        ZeroDivisionError: upstream, without positives.
        ValueError: fixed, for lists of different lengths.
    """
    replies = [pope_parse(text, compat=compat) for text in texts]
    pairs = list(zip(replies, labels, strict=compat == "fixed"))
    right = {"yes": "TP", "no": "TN"}
    wrong = {"yes": "FN", "no": "FP"}
    found = Counter(right[label] if reply == label else wrong[label] for reply, label in pairs)
    counts = {key: found[key] for key in ("TP", "FP", "TN", "FN")}
    tp, fp, tn, fn = counts.values()
    n = tp + fp + tn + fn
    if compat == "fixed":
        return {
            **counts,
            "accuracy": (tp + tn) / n if n else None,
            "precision": tp / (tp + fp) if tp + fp else None,
            "recall": tp / (tp + fn) if tp + fn else None,
            "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
            "yes_ratio": replies.count("yes") / n if n else None,
        }
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    accuracy, yes_ratio = (tp + tn) / n, replies.count("yes") / len(replies)
    return {
        **counts,
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": yes_ratio,
    }


def mme_score(files: Mapping[str, Sequence[Sequence[str]]], *, compat: Compat = "upstream") -> dict[str, float]:
    """Return points per task of MME (0 to 200), `perception_total` and `cognition_total`.

    Rows are image, question, yes or no, and reply; two consecutive rows are one image. Task points are 100 times the
    share of right replies, plus 100 times the share of images with both right. upstream: a task that is not given
    counts as perfect (as the golden values were made), and a row that does not read as one line of four columns is
    skipped. fixed: only given tasks count, and a task that is not MME's is refused.

    Raises:
        AssertionError: A row without its partner, or a reference other than yes or no (as published).
        ValueError: upstream, for a task in which no reply is yes or no (the published metrics stop there).
        DataError: fixed, for an unknown task, one without rows, or a row without four columns.
    """
    if compat == "fixed" and (unknown := files.keys() - " ".join(TASKS.values()).split()):
        raise DataError(f"MME has no tasks {sorted(unknown)}", expected=" ".join(TASKS.values()))
    scores: dict[str, float] = {}
    for kind, names in TASKS.items():
        points = {name: task_points(files[name], compat) for name in names.split() if name in files}
        missing = 0 if compat == "fixed" else len(names.split()) - len(points)
        scores |= {f"{kind}_total": sum(points.values()) + PERFECT * missing, **points}
    return scores


def task_points(rows: Sequence[Sequence[str]], compat: Compat = "upstream") -> float:
    """Return the points of one task of MME, 0 to 200; see `mme_score`."""
    if compat == "upstream":  # through the text file of the published script
        lines = re.split(r"\r\n|\r|\n", "".join("\t".join(map(str, row)) + "\n" for row in rows))[:-1]
        rows = [line.split("\t") for line in lines]
    right: list[bool] = []
    readable, whole = False, 0
    for first in range(0, len(rows), 2):
        pair = rows[first : first + 2]
        if len(pair) != 2:
            raise AssertionError("a row without its partner")
        image: list[bool] = []
        for row in pair:
            if len(row) != 4:
                if compat == "fixed":
                    raise DataError(f"a row of {len(row)} columns", expected="image, question, yes or no, reply")
                continue
            gold, found = row[2].lower(), mme_parse(row[3], compat=compat)
            if gold not in ("yes", "no"):
                raise AssertionError(f"reference {row[2]!r}, expected yes or no")
            readable |= found != "other"
            image.append(found == gold)
        whole += len(image) == 2 and all(image)
        right += image
    if compat == "upstream" and not readable:
        raise ValueError("no reply is yes or no")
    if not right:
        raise DataError("a task without rows", expected="two rows per image")
    return 100 * sum(right) / len(right) + 100 * whole / (len(rows) / 2)


def mmniah_aggregate_v2pe(task: str, rows: Sequence[dict[str, Any]], *, compat: Compat = "upstream") -> dict[str, Any]:
    """Return columns, average and plain accuracies of one task of MM-NIAH. Source: the published evaluators.

    Rows hold `answer`, the raw `response`, `context_length` and `placed_depth`.
    """
    n_cells = (len(EDGES) + 1) * DEPTHS
    counting = "counting" in task
    answers = [json.loads(r["answer"]) if counting and isinstance(r["answer"], str) else r["answer"] for r in rows]
    values = [float(_mmniah_score(a, r["response"], compat=compat)) for a, r in zip(answers, rows, strict=True)]
    where = cells([r["context_length"] for r in rows], [r["placed_depth"] for r in rows])
    sums = np.bincount(where, weights=values, minlength=n_cells).astype(float)
    counts = np.bincount(where, minlength=n_cells).astype(float)
    columns = [round(float(score), 6) for score in column_scores(sums, counts, compat=compat)]
    by_column, right = (x.reshape(-1, DEPTHS).sum(axis=1)[1:] for x in (counts, sums))
    return {
        task: columns,
        "average": float(np.nanmean(columns)) if not np.isnan(columns).all() else None,
        "weighted_acc": np.divide(right, by_column, out=np.zeros_like(right), where=by_column > 0).tolist(),
        "sample_number_array": by_column.tolist(),
        "weighted_avg_acc": float(sums.sum() / counts.sum()),
        "context_ranges": [f"{edge // 1000}k" for edge in EDGES],
    }


def _mmniah_score(answer: Any, response: str, *, compat: Compat = "upstream") -> float:
    """Score by the type of the reference: index of an option, list of counts, or text."""
    if isinstance(answer, list):
        return mmniah_counting(answer, response, compat=compat)
    if isinstance(answer, int):
        return mmniah_choice(answer, response, compat=compat)
    return mmniah_text(answer, response, compat=compat)


SCORERS = {
    "gqa_official": Scorer(gqa_official),
    "mme_score": Scorer(mme_score),
    "mmniah_aggregate_v2pe": Scorer(mmniah_aggregate_v2pe),
    "pope_metrics": Scorer(pope_metrics),
}
