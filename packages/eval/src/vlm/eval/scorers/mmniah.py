"""MM-NIAH: letters, counts and words from replies, and columns by context length. Source: the published evaluators"""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm.eval.measures.text import MMNIAH_NUMBERS, Compat, has_words, vqa_normalize
from vlm.eval.scorers.milebench import first_label

EDGES = (1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000)
"""Lower edges of the context-length columns, in tokens; shorter samples are in no column."""

DEPTHS = 5


def _clean(text: str) -> str:
    text = text.lower().replace("the answer is", "").replace("*", "")
    return text.split(".")[0].replace(",", "").strip() if "." in text else text


def mmniah_choice(answer: int, response: str, *, compat: Compat = "upstream", n_choices: int = 26) -> int:
    """1 iff the reply names the option of that index (0 = A).

    upstream: digits are an index, `(B)` and `Answer: B` are wrong. fixed: the first label that stands alone.
    """
    reply = response.strip(".")
    if compat == "upstream":
        if reply.isdigit():
            return int(int(reply) == answer)
        reply = _clean(reply).strip()
    direction = reply if compat == "upstream" else _clean(reply).strip()
    for letter, word in (("a", "left"), ("b", "right")):
        if f"the camera is moving {word}" in direction or direction == word:
            reply = letter
            break
    if compat == "fixed":
        return int(first_label(reply, [""] * n_choices) == chr(65 + answer))
    return int(len(reply) == 1 and ord(reply) - ord("a") == answer)


def mmniah_counting(answer: Sequence[int], response: str, *, compat: Compat = "upstream") -> float:
    """Share of list positions that are right.

    upstream: the whole reply must be JSON (fences aside), extra entries are ignored, true equals 1. fixed: the first
    list in the reply, digits in quotes count, extra entries count as wrong.

    Raises:
        ZeroDivisionError: upstream, for an empty reference (as published), unless the reply is no list.
    """
    if compat == "fixed":
        lists = re.findall(r"\[[^\[\]]*\]", response)
        entries = [entry for entry in re.split(r"[\s,\"']+", lists[0][1:-1]) if entry] if lists else []
        found = [int(entry) if re.fullmatch(r"-?\d+", entry) else None for entry in entries]
        size = max(len(answer), len(found))
        return sum(a == b for a, b in zip(answer, found, strict=False)) / size if size else float(bool(lists))
    text = response.strip(".").replace("json", "").replace("```", "").strip()
    try:
        values = json.loads(text)
        if isinstance(values, dict):
            values = [entry for part in values.values() for entry in list.copy(part)]  # parts must be lists
    except (ValueError, TypeError, RecursionError):
        return 0.0
    if not isinstance(values, list):
        return 0.0
    return sum(bool(a == b) for a, b in zip(values, answer, strict=False)) / len(answer)


def mmniah_text(answer: str, response: str, *, compat: Compat = "upstream") -> int:
    """1 iff the reply equals the reference or contains it as whole words, after the VQA clean-up.

    upstream: both are cut at the first period before the equality test, and a reference that cleans to nothing is in
    every reply that has a word. fixed: no cut, and such a reference must be equal.
    """
    found, gold = (vqa_normalize(text, MMNIAH_NUMBERS) for text in (response.strip("."), answer))
    if compat == "fixed":
        same = response.strip(" .*\n").lower() == answer.strip(" .*\n").lower() != ""
        return int(same or (bool(gold) and re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", found) is not None))
    reply = _clean(response.strip(".")).strip()
    return int(reply == _clean(answer) or has_words(found, gold))


def mmniah_score(answer: Any, response: str, *, compat: Compat = "upstream") -> float:
    """By the type of the reference: option index, list of counts, or text."""
    if isinstance(answer, list):
        return mmniah_counting(answer, response, compat=compat)
    if isinstance(answer, int):
        return mmniah_choice(answer, response, compat=compat)
    return mmniah_text(answer, response, compat=compat)


def mmniah_forced(answer: Any, response: str, *, compat: Compat = "upstream") -> int:
    """1 iff the predicted tokens of a teacher-forced answer are right: for an int the first one is its letter, for
    anything else all are the answer's. Compared as text. The same in both modes. Source: OpenGVLab/V2PE, long variant

    >>> mmniah_forced(1, "B"), mmniah_forced("oak", "oak"), mmniah_forced("oak", "oaks")
    (1, 1, 0)
    """
    return int(response.strip() == (chr(65 + answer) if isinstance(answer, int) else str(answer).strip()))


def cells(lengths: Sequence[float], depths: Sequence[float | Sequence[float]]) -> np.ndarray:
    """Cell number of each sample: column * 5 + depth row, column 0 holding what is below 1000 tokens. int64 [n].

    Depth is the mean of several; 1.0 belongs to the last row. As published the row is int(depth / 0.2) in floats, so
    0.6 is in row 2.

    Raises:
        IndexError: a depth outside 0..1.
    """
    columns = np.digitize(np.asarray(lengths, dtype=float), EDGES)
    means = [sum(d) / len(d) if isinstance(d, Sequence) else d for d in depths]
    rows = [int((0.99 if d == 1.0 else d) / 0.2) for d in means]
    if rows and (min(rows) < 0 or max(rows) >= DEPTHS):
        raise IndexError(f"depths from {min(means)} to {max(means)}, expected 0 to 1")
    return columns * DEPTHS + np.asarray(rows, dtype=np.int64)


def column_scores(sums: np.ndarray, counts: np.ndarray, *, compat: Compat = "upstream") -> np.ndarray:
    """Score of the 11 columns, 0..1: [..., 60] cell sums and counts -> [..., 11].

    upstream: plain mean of the five depth cells, an empty cell counting 0. fixed: mean of the filled cells, NaN when
    all are empty.
    """
    shape = (*sums.shape[:-1], len(EDGES) + 1, DEPTHS)
    total = counts.reshape(shape)[..., 1:, :]
    means = np.divide(sums.reshape(shape)[..., 1:, :], total, out=np.zeros(total.shape), where=total > 0)
    if compat == "upstream":
        return means.mean(axis=-1)
    filled = (total > 0).sum(axis=-1)
    return np.divide(means.sum(axis=-1), filled, out=np.full(filled.shape, np.nan), where=filled > 0)


def mmniah_aggregate_v2pe(task: str, rows: Sequence[dict[str, Any]], *, compat: Compat = "upstream") -> dict[str, Any]:
    """Columns, average and plain accuracies of one task from raw replies (`answer`, `response`, `context_length`,
    `placed_depth`). Source: the published evaluators"""
    n_cells = (len(EDGES) + 1) * DEPTHS
    counting = "counting" in task
    answers = [json.loads(r["answer"]) if counting and isinstance(r["answer"], str) else r["answer"] for r in rows]
    values = [float(mmniah_score(a, r["response"], compat=compat)) for a, r in zip(answers, rows, strict=True)]
    where = cells([r["context_length"] for r in rows], [r["placed_depth"] for r in rows])
    sums = np.bincount(where, weights=values, minlength=n_cells)
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
