"""MathVista: the answer in a reply, without a judge, and its normal form by type. Source: the published evaluators."""

import math
import re
from collections.abc import Sequence
from typing import Any, TypedDict

from rapidfuzz.distance import Levenshtein

from vlm.eval.loaders.common import Item
from vlm.eval.measures.letters import label, read_label
from vlm.eval.measures.reply import answer_text
from vlm.eval.measures.short import lone_amount, normal, same_answer, short_answers
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, by_fields

BRACKETED = re.compile(r"\(([a-zA-Z])\)")
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
SEPARATOR = re.compile(r"\s*[,，、;]\s*(?:and\s+)?|\s+and\s+")
DENIED = re.compile(r"(?:\bnot|n't|\bor)(?: the list)?\s*$", re.IGNORECASE)
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

    upstream: a choice is named by its letter, else the one at the smallest edit distance is taken. fixed: a choice must
    be named (`read_label`), a number or a text is a short answer of the reply; nothing is guessed.

    Raises:
        ValueError, TypeError: A question to choose from has no choices (as published).
    """
    if compat == "fixed":
        read = _read(str(extraction), choices, question_type, answer_type, precision, answer)
        return {"prediction": read, "true_false": read is not None and read == answer}
    found: Any = extraction
    if question_type == "multi_choice":
        found = _choice(str(extraction).strip() if isinstance(extraction, str) else str(extraction), choices)
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


def _read(
    reply: str,
    choices: Sequence[str] | None,
    question_type: str,
    answer_type: str,
    precision: float | None,
    answer: Any,
) -> str | None:
    """Read a reply as a person does, in the form of the answer's type; None where it says nothing of that type."""
    if question_type == "multi_choice":
        if choices is None:
            raise TypeError("a question to choose from without choices")
        if reply.strip() in choices:
            return reply.strip()
        letter = read_label(reply, choices)
        return next((choice for i, choice in enumerate(choices) if label(i) == letter), None)
    said = short_answers(reply)
    if answer_type in ("integer", "float"):
        numbers = [found[0] for one in said if (found := lone_amount(one)) is not None and math.isfinite(found[0])]
        if answer_type == "integer":
            forms = [str(int(number)) if number.is_integer() else f"{number:g}" for number in numbers]
        else:
            forms = [str(round(number, int(precision))) for number in numbers] if precision is not None else []
        return next((form for form in forms if form == answer), forms[0] if forms else None)
    if answer_type == "list":
        lists = _lists(answer_text(reply.replace("\\[", "[").replace("\\]", "]")), said)
        wanted = _entries(str(answer).strip("[]"))
        return next((str(answer) for one in lists if _entries(one) == wanted), f"[{lists[0]}]" if lists else None)
    return str(answer) if same_answer(reply, str(answer)) else said[0] if said else None


def _lists(text: str, said: Sequence[str]) -> list[str]:
    """Return the insides of what may be the list of a reply: the last in brackets, else each of its short answers."""
    found = list(BRACKETS.finditer(text))
    if not found:
        return [one for one in said if SEPARATOR.search(one)]
    return [] if DENIED.search(text[: found[-1].start()]) else [found[-1][1]]


def _entries(inside: str) -> list[str]:
    return [normal(part.strip()) for part in SEPARATOR.split(inside)]


def _choice(text: str, choices: Sequence[str] | None) -> str | None:
    if choices is None:
        raise TypeError("a question to choose from without choices")
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


def _whole(item: Item, completion: str) -> dict[str, Any]:
    return {**_inputs(item, completion), "extraction": completion}


SCORERS = {
    "mathvista_normalize": Scorer(
        mathvista_normalize, _inputs, by_fields("true_false", "prediction"), strict_inputs=_whole, judged="extraction"
    ),
    "mathvista_quick_extract": Scorer(mathvista_quick_extract),
}
