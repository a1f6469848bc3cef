"""Long-VQA's second evaluator (after the DUE benchmark): shared values, F1, ANLS, WikiTableQuestions denotations.

Rows are `{"id", "le", "pr", "an"}`: `pr` is the reply, `an` the reference, each a text or a list of texts, compared
without case, outer spaces and final periods. Scores are percent. In `fixed` mode an empty or missing reply is wrong,
and no rows give None. Source: the published evaluator.

    due_wtq([{"id": "1", "le": 0, "pr": ["3.0", "x"], "an": ["x", "3"]}])          # 100.0: the same set of values
"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from vlm.eval.measures.text import Compat
from vlm.eval.scorers.owl import LongVqaRow, Rows
from vlm.eval.scorers.scorer import Scorer

Values = list[str]


def _values(value: str | Sequence[str]) -> Values:
    return [text.lower().strip().rstrip(".") for text in ([value] if isinstance(value, str) else value)]


def _sides(row: LongVqaRow, compat: Compat) -> tuple[Values, Values]:
    assert row.keys() >= {"id", "pr", "an"}, "a row needs id, pr and an"
    if compat == "fixed":
        return [text for text in _values(row["pr"] or "") if text], _values(row["an"])
    return _values(row["pr"]), _values(row["an"])


def _percent(rows: Rows, metric: Callable[[Values, Values], float], compat: Compat) -> float | None:
    scores = []
    for row in rows:
        found, expected = _sides(row, compat)
        scores.append(0.0 if compat == "fixed" and not found else float(metric(found, expected)))
    if not scores:
        return None if compat == "fixed" else 0.0
    return sum(scores) / len(scores) * 100


def _share(found: Values, expected: Values) -> bool:
    return not set(found).isdisjoint(expected)


def due_acc(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Score rows whose reply shares a value with the reference."""
    return _percent(rows, _share, compat)


def due_f1(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Return the F1 of matched rows: a reply matches one reference of its id with a common value, each at most once.

    With unique ids this is `due_acc`.
    """
    sides = [(row.get("id"), *_sides(row, compat)) for row in rows]
    if not sides:
        return None if compat == "fixed" else 0.0
    replies = [(key, found) for key, found, _ in sides]
    references = [(key, expected) for key, _, expected in sides]
    precision, recall = _matched(replies, references), _matched(references, replies)
    return 200 * precision * recall / (precision + recall) if precision or recall else 0.0


def _matched(these: list[tuple[Any, Values]], those: list[tuple[Any, Values]]) -> float:
    free, hits = list(those), 0
    for key, values in these:
        partner = next((i for i, (other, found) in enumerate(free) if other == key and _share(values, found)), None)
        if partner is not None:
            del free[partner]
            hits += 1
    return hits / len(these)


def due_anls(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Score 1 - edit distance / longer length, best over references, 0 up to one half.

    Raises:
        AssertionError: A reply is not one text (upstream; fixed takes the best).
        ValueError: A row has no reference.
    """

    def metric(found: Values, expected: Values) -> float:
        assert len(found) == 1 or compat == "fixed", f"{len(found)} replies, the published scorer takes one"
        best = max(_similarity(reply, reference) for reply in found for reference in expected)
        return best if best > 0.5 else 0.0

    return _percent(rows, metric, compat)


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    return 1 - Levenshtein.distance(a, b) / longer if longer else 1.0


# WikiTableQuestions --------------------------------------------------------------------------------------------------

Value = tuple[str, Any]
"""("number", amount), ("date", (year, month, day)) or ("text", normalized text)."""


def due_wtq(rows: Rows, *, compat: Compat = "upstream") -> float | None:
    """Score equal sets of values: numbers within 1e-6, dates y-m-d (xx: unknown), else normalized texts.

    Source: the published evaluator; the rule of the official WikiTableQuestions scorer.
    """
    return _percent(rows, _same_denotation, compat)


def _same_denotation(found: Values, expected: Values) -> bool:
    predicted, target = _denotation(found), _denotation(expected)
    return len(predicted) == len(target) and all(any(_equal(a, b) for b in predicted.items()) for a in target.items())


def _denotation(texts: Values) -> dict[Value, str]:
    """Return the distinct values, each with the normalized text that it was read from."""
    values: dict[Value, str] = {}
    for text in texts:
        normal = normalize(text)
        values.setdefault(_parse(text) or ("text", normal), normal)
    return values


def _equal(a: tuple[Value, str], b: tuple[Value, str]) -> bool:
    (kind, x), (other, y) = a[0], b[0]
    if a[1] == b[1]:
        return True
    return kind == other and (abs(x - y) < 1e-6 if kind == "number" else kind == "date" and x == y)


def _parse(text: str) -> Value | None:
    number = _number(text)
    if number is None:
        date = _date(text)
        if date is None or date[1:] != (-1, -1):
            return None if date is None else ("date", date)
        number = date[0]
    return "number", int(number) if abs(number - round(number)) < 1e-6 else number


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date(text: str) -> tuple[int, int, int] | None:
    parts = text.lower().split("-")
    if len(parts) != 3:
        return None
    unknown = ("xx", "xxxx"), ("xx",), ("xx",)
    try:
        year, month, day = (-1 if part in marks else int(part) for part, marks in zip(parts, unknown, strict=True))
    except ValueError:
        return None
    valid = (month == -1 or 1 <= month <= 12) and (day == -1 or 1 <= day <= 31) and (year, month, day) != (-1, -1, -1)
    return (year, month, day) if valid else None


def normalize(text: str) -> str:
    """Remove accents, citations, footnote marks, final brackets, outer quotes and one final period; lower the case."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    for marks, plain in (("‘’´`", "'"), ("“”", '"'), ("‐‑‒–—−", "-")):
        text = re.sub(f"[{marks}]", plain, text)
    before = None
    while text != before:
        before = text
        text = re.sub(r"((?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])*$", "", text.strip())
        text = re.sub(r"(?<!^)( \([^)]*\))*$", "", text.strip())
        text = re.sub(r'^"([^"]*)"$', r"\1", text.strip())
    return re.sub(r"\s+", " ", text.removesuffix(".")).lower().strip()


SCORERS = {
    "due_acc": Scorer(due_acc),
    "due_anls": Scorer(due_anls),
    "due_f1": Scorer(due_f1),
    "due_wtq": Scorer(due_wtq),
}
