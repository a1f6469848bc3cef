"""MathVista: the answer in a reply, without a judge, and its normal form by type. Source: the published evaluators."""

import re
from collections.abc import Sequence
from typing import Any, TypedDict

from rapidfuzz.distance import Levenshtein

from vlm.eval.loaders.common import Item
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, by_fields

BRACKETED = re.compile(r"\(([a-zA-Z])\)")
MARKED = re.compile(r"(?:final )?answer:\s*(.*)", re.IGNORECASE)


class MathAnswer(TypedDict):
    """An answer in the form of its type (None: unreadable), and whether it is right."""

    prediction: Any
    true_false: bool


def mathvista_normalize(
    extraction: Any,
    choices: Sequence[str] | None,
    question_type: str,
    answer_type: str,
    precision: float | None,
    answer: Any,
    *,
    compat: Compat = "upstream",
) -> MathAnswer:
    """Return the `prediction` in the form of its type (None: unreadable), and `true_false`: whether it is the answer.

    A choice is named by its letter, else the one at the smallest edit distance is taken. upstream: also for a small
    letter or an empty extraction. fixed: a small letter is a letter, an empty extraction is no choice.

    Raises:
        ValueError, TypeError: A question to choose from has no choices (as published).
    """
    found: Any = extraction
    if question_type == "multi_choice":
        found = _choice(str(extraction).strip() if isinstance(extraction, str) else str(extraction), choices, compat)
    elif answer_type in ("integer", "float"):
        try:
            number = float(extraction)
            places: Any = precision  # None for an integer; int(None) is unreadable, as published
            found = str(int(number)) if answer_type == "integer" else str(round(number, int(places)))
        except (ValueError, TypeError, OverflowError):
            found = None
    elif answer_type == "list":
        found = str(extraction)
    return {"prediction": found, "true_false": bool(found == answer)}


def _choice(text: str, choices: Sequence[str] | None, compat: Compat) -> str | None:
    if choices is None:
        raise TypeError("a question to choose from without choices")
    if compat == "fixed":
        text = text.strip()
        if not text:
            return None
        text = text.upper() if len(text) == 1 and text not in choices else text
    bracketed = BRACKETED.search(text)
    letter = bracketed[1].upper() if bracketed else text
    if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
        return choices[ord(letter) - ord("A")]
    return min(choices, key=lambda choice: Levenshtein.distance(letter, choice))


def mathvista_quick_extract(text: str, *, compat: Compat = "upstream") -> str:
    """Return what follows the first `Answer:` or `Final answer:` (in any case) on its line, else the whole text.

    The same in both modes.
    """
    match = MARKED.search(text)
    return match[1].strip() if match else text


def _inputs(item: Item, completion: str) -> dict[str, Any]:
    keys = ("choices", "question_type", "answer_type", "precision")
    extraction = mathvista_quick_extract(completion)
    return {"extraction": extraction, "answer": item.gold, **{key: item.meta[key] for key in keys}}


SCORERS = {
    "mathvista_normalize": Scorer(
        mathvista_normalize, _inputs, by_fields("true_false", "prediction"), judged="extraction"
    ),
    "mathvista_quick_extract": Scorer(mathvista_quick_extract),
}
