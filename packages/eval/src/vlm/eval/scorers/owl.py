"""Long-VQA's first evaluator: equality, relaxed accuracy, containment, ANLS, box overlap, BLEU-4.

Rows are `{"id", "le", "pr", "an"}`: `pr` is the reply, `an` the reference, a text or a list of texts. Line breaks and
one final period are removed from both sides first. Scores are percent over all rows. In `fixed` mode an empty or
missing reply is wrong, and no rows give None instead of an error. Source: the published evaluator.

    owl_racc([{"id": "1", "le": 0, "pr": "95", "an": "100"}])            # 100.0: within 5 %
"""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

import regex
from rapidfuzz.distance import Levenshtein

from vlm.eval.measures.bleu import bleu4, bleu_counts
from vlm.eval.measures.text import Compat, has_words
from vlm.eval.scorers.scorer import Scorer


class LongVqaRow(TypedDict):
    """A reply and its reference, each a text or a list of texts (no reply: None). `le`: length of the context."""

    id: Any
    pr: Any
    an: Any
    le: NotRequired[Any]


Rows = Sequence[LongVqaRow]
"""Rows of one task."""


def tidy(text: str) -> str:
    """Remove line breaks, outer spaces and one final period."""
    return text.replace("\n", "").strip().removesuffix(".")


def reply_of(row: LongVqaRow, compat: Compat) -> str:
    """Return the tidied reply; in fixed mode a missing one is empty."""
    return tidy(row["pr"] or "" if compat == "fixed" else row["pr"])


def references_of(row: LongVqaRow) -> list[str]:
    """Return the tidied references."""
    return [tidy(text) for text in (row["an"] if isinstance(row["an"], list) else [row["an"]])]


def _percent(
    rows: Rows, metric: Callable[[str, str], float], compat: Compat, clean: Callable[[str], str] = str
) -> float | None:
    scores = []
    for row in rows:
        reply, references = clean(reply_of(row, compat)), [clean(text) for text in references_of(row)]
        empty = compat == "fixed" and not reply
        scores.append(0.0 if empty else max(metric(reply, reference) for reference in references))
    return None if compat == "fixed" and not scores else 100.0 * sum(scores) / len(scores)


def owl_eacc(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Score equal texts.

    Raises:
        ZeroDivisionError: No rows (upstream; as all scorers here but BLEU-4 and IoU).
    """
    return _percent(rows, lambda reply, reference: float(reply == reference), compat)


def owl_racc(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Score numbers other than 0 within 5 % of the reference, else texts that are equal but for case."""
    return _percent(rows, _relaxed, compat)


def _relaxed(reply: str, reference: str) -> float:
    a, b = _number(reply), _number(reference)
    return float(abs(a - b) / abs(b) <= 0.05 if a and b else reply.lower() == reference.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def owl_cacc(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Score replies with the reference as whole words, Latin letters and digits only."""
    return _percent(
        rows,
        lambda reply, reference: float(has_words(reply, reference)),
        compat,
        clean=lambda text: regex.sub(r"[^a-zA-Z0-9\s]", "", text).lower(),
    )


def owl_anls(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Score 1 - edit distance / longer length, 0 from one half on, in lower case.

    Raises:
        ZeroDivisionError: A reply and its reference are both empty (upstream).
    """
    return _percent(rows, _similarity, compat, clean=str.lower)


def _similarity(reply: str, reference: str) -> float:
    distance = Levenshtein.distance(reference, reply) / max(len(reference), len(reply))
    return 1.0 - distance if distance < 0.5 else 0.0


def owl_iou(target: Sequence[float], prediction: Sequence[float], *, compat: Compat = "upstream") -> float:
    """Return 1 if the boxes [x1, y1, x2, y2] overlap by half of their union, else 0.

    upstream: boxes apart on *both* axes have a positive product of two negative overlaps, and can score 1. fixed: they
    do not overlap.
    """
    ax1, ay1, ax2, ay2 = target
    bx1, by1, bx2, by2 = prediction
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    common = width * height
    if common <= 0 or (compat == "fixed" and width < 0):
        return 0.0
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    return float(common / union >= 0.5)


def owl_bleu4(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Return BLEU-4 x 100 of the rows as one corpus of Penn Treebank tokens; an empty reply adds no match."""
    if compat == "fixed" and not rows:
        return None
    counts = bleu_counts([reply_of(row, compat) for row in rows], [references_of(row) for row in rows])
    return 100.0 * bleu4(counts.sum(axis=0))


SCORERS = {
    "owl_anls": Scorer(owl_anls),
    "owl_bleu4": Scorer(owl_bleu4),
    "owl_cacc": Scorer(owl_cacc),
    "owl_eacc": Scorer(owl_eacc),
    "owl_iou": Scorer(owl_iou),
    "owl_racc": Scorer(owl_racc),
}
