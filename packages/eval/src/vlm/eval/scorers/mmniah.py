"""MM-NIAH: letters, counts and words from replies, and scores by context length. Source: the published evaluators."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.letters import read_label
from vlm.eval.measures.reply import answer_text, ends, says
from vlm.eval.measures.rows import Answers, Metric, Parts, ResultRow, bounds_of, by_group, plain
from vlm.eval.measures.stats import Array, ratio, replicates
from vlm.eval.measures.text import MMNIAH_NUMBERS, Compat, has_words, vqa_normalize
from vlm.eval.scorers.scorer import Scorer, takes

EDGES = (1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000)
"""Lower edges of the context-length columns, in tokens; shorter samples are in no column."""

DEPTHS = 5
"""Rows of needle depths in each column, a fifth of the document each."""


def _clean(text: str) -> str:
    text = text.lower().replace("the answer is", "").replace("*", "")
    return text.split(".")[0].replace(",", "").strip() if "." in text else text


def mmniah_choice(answer: int, response: str, *, compat: Compat = "upstream", n_choices: int = 26) -> int:
    """Return 1 iff the reply names the option of that index (0 = A).

    upstream: digits are an index, `(B)` and `Answer: B` are wrong. fixed: the label that a reader finds.
    """
    reply = response.strip(".")
    if compat == "upstream":
        if reply.isdigit():
            return int(int(reply) == answer)
        reply = _clean(reply).strip()
    direction = reply if compat == "upstream" else _clean(answer_text(reply)).strip()
    for letter, word in (("a", "left"), ("b", "right")):
        if f"the camera is moving {word}" in direction or direction == word:
            reply = letter
            break
    if compat == "fixed":
        return int(read_label(reply, [""] * n_choices) == chr(65 + answer))
    return int(len(reply) == 1 and ord(reply) - ord("a") == answer)


def mmniah_counting(answer: Sequence[int], response: str, *, compat: Compat = "upstream") -> float:
    """Return the share of list positions that are right.

    upstream: the whole reply must be JSON (without fences), extra entries are ignored, true equals 1. fixed: the last
    list in the reply, or a reply of numbers alone; 1.0 and digits in quotes count, extra entries count as wrong.

    Raises:
        ZeroDivisionError: upstream, for an empty reference (as published), unless the reply is no list.
    """
    if compat == "fixed":
        found = read_counts(response)
        size = max(len(answer), len(found or ()))
        return sum(a == b for a, b in zip(answer, found or (), strict=False)) / size if size else float(found == [])
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


def read_counts(response: str) -> list[int | None] | None:
    """Read a list of counts, None for an entry that is no count; None without a list."""
    said = answer_text(response.replace("\\[", "[").replace("\\]", "]"))
    said = re.sub(r"^\((.*)\)$", r"\1", ends(said))
    lists = re.findall(r"\[([^\[\]]*)\]", said)
    bare = re.fullmatch(r"(?:\D{0,60}?(?:is|are|be|:|是|为)\s*)?([-\d.,、\s]*\d(?:\s*,?\s*and\s+-?\d+)?)\D?", said)
    if not lists and not bare:
        return None
    inside = str(lists[-1] if lists else bare and bare[1])
    entries = [entry for entry in re.split(r"[\s,、\"']+|\band\b", inside) if entry]
    return [int(float(entry)) if re.fullmatch(r"[-+]?\d{1,9}(?:\.0*)?", entry) else None for entry in entries]


def mmniah_text(answer: str, response: str, *, compat: Compat = "upstream") -> int:
    """Return 1 iff the reply equals the reference, or contains it as whole words after VQA normalization.

    upstream: both are cut at the first period before the equality test, and a reference that normalizes to nothing is
    in every reply that has a word. fixed: no cut, and such a reference must be equal.
    """
    response = answer_text(response) if compat == "fixed" else response
    found, gold = (vqa_normalize(text, MMNIAH_NUMBERS) for text in (response.strip("."), answer))
    if compat == "fixed":
        same = response.strip(" .*\n").lower() == answer.strip(" .*\n").lower() != ""
        return int(same or (bool(gold) and says(found, gold)))
    reply = _clean(response.strip(".")).strip()
    return int(reply == _clean(answer) or has_words(found, gold))


def mmniah_forced(answer: Any, response: str, *, compat: Compat = "upstream") -> int:
    """Return 1 iff the predicted tokens of a teacher-forced answer are right, compared as text.

    For an int the first token is the letter of that index; for any other answer all tokens are the answer's. The same
    in both modes. Source: OpenGVLab/V2PE, long variant.

    >>> mmniah_forced(1, "B"), mmniah_forced("oak", "oak"), mmniah_forced("oak", "oaks")
    (1, 1, 0)
    """
    return int(response.strip() == (chr(65 + answer) if isinstance(answer, int) else str(answer).strip()))


def cells(lengths: Sequence[float], depths: Sequence[float | Sequence[float]]) -> npt.NDArray[np.int64]:
    """Find the cell of each sample, int64 [samples]: column * 5 + depth row; column 0 is below 1000 tokens.

    Several depths are averaged; 1.0 belongs to the last row. As published the row is int(depth / 0.2) in floats, so 0.6
    is in row 2.

    Args:
        lengths: Context lengths in tokens.
        depths: Needle depths, 0 to 1.

    Raises:
        IndexError: A depth is outside 0 to 1.
    """
    columns = np.digitize(np.asarray(lengths, dtype=float), EDGES)
    means = [sum(d) / len(d) if isinstance(d, Sequence) else d for d in depths]
    rows = [int((0.99 if d == 1.0 else d) / 0.2) for d in means]
    if rows and (min(rows) < 0 or max(rows) >= DEPTHS):
        raise IndexError(f"depths from {min(means)} to {max(means)}, expected 0 to 1")
    found: npt.NDArray[np.int64] = columns * DEPTHS + np.asarray(rows, dtype=np.int64)
    return found


def column_scores(sums: Array, counts: Array, *, compat: Compat = "upstream") -> Array:
    """Score the 11 columns, 0 to 1: [..., 60] sums and counts of cells -> [..., 11].

    upstream: the mean of the five depth cells, an empty cell counts 0. fixed: the mean of the filled cells, NaN when
    all are empty.
    """
    shape = (*sums.shape[:-1], len(EDGES) + 1, DEPTHS)
    total = counts.reshape(shape)[..., 1:, :]
    means = np.divide(sums.reshape(shape)[..., 1:, :], total, out=np.zeros(total.shape), where=total > 0)
    filled = (total > 0).sum(axis=-1)
    found: Array = (
        means.mean(axis=-1)
        if compat == "upstream"
        else np.divide(means.sum(axis=-1), filled, out=np.full(filled.shape, np.nan), where=filled > 0)
    )
    return found


def mmniah(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean over columns per task, for image, text and both, and the plain accuracy of each task."""
    tasks: list[str] = benchmark.options["tasks"]
    groups, parts = by_group(rows), Parts(rows, compat)
    columns, each = [], []
    for number, task in enumerate(tasks):
        answers = Answers(groups.get(task, []), compat)
        each.append(answers.mean(f"{task} (plain accuracy)"))
        found = _column_mean(answers, compat, seed=1000 * number)
        if found is None:
            columns.append(answers.metric(task, None, note=f"no scored sample of {EDGES[0]} tokens or more"))
            continue
        parts.known[task] = found
        value, samples = found
        columns.append(answers.metric(task, value, bounds_of(samples, value, len(answers.rows))))
    kinds = [parts.average(kind, [task for task in tasks if task.endswith(kind)]) for kind in ("image", "text")]
    return [parts.average("average", ["image", "text"]), *kinds, *columns, *each, *plain(rows, compat)[:1]]


def _column_mean(answers: Answers, compat: Compat, *, seed: int) -> tuple[float, Array] | None:
    """Return the mean over the columns of one task, and its replicates; None without a sample in any column.

    Resampled within each cell: across cells, a resample that empties a cell would lower the published mean, in which an
    empty cell counts 0, although no answer is worse.
    """
    metas = [row["meta"] for row in answers.rows]
    where = cells([m["context_length"] for m in metas], [m["placed_depth"] for m in metas])
    filled = [
        int(cell) for cell in np.unique(where) if cell >= DEPTHS
    ]  # the first five hold samples that are too short
    if not filled:
        return None
    per_column = Counter(cell // DEPTHS for cell in filled)
    value, samples = 0.0, np.zeros(1000)
    for cell in filled:
        upstream = compat == "upstream"
        weight = 1 / (len(EDGES) * DEPTHS) if upstream else 1 / (len(per_column) * per_column[cell // DEPTHS])
        values = answers.values[where == cell]
        value += weight * float(values.mean())
        columns = np.stack([values, np.ones_like(values)], axis=1)
        samples += weight * replicates(columns, ratio, n=len(samples), seed=seed + cell)
    return value, samples


SCORERS = {
    "mmniah_choice": Scorer(mmniah_choice, takes("response", "answer", n_choices="n_choices")),
    "mmniah_counting": Scorer(mmniah_counting, takes("response", "answer")),
    "mmniah_forced": Scorer(mmniah_forced, takes("response", "answer")),
    "mmniah_text": Scorer(mmniah_text, takes("response", "answer")),
}
AGGREGATES = {"mmniah": mmniah}
