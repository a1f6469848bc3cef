"""Text normalization that several published scorers share: marks, number words, articles, contractions.

The table of marks, the order of the steps and the odd rules are as published (VQA evaluation code and its descendants).

    vqa_normalize("The two cats.")                # "2 cats"
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Literal

Compat = Literal["upstream", "fixed"]
"""`upstream`: the published rule, faults included. `fixed`: our correction where the published rule is faulty."""

MARKS = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
MAX_PERIODS = 32
"""The published call passes a regular-expression flag (32) as the count."""

_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TO_NINETEEN = {word: str(i) for i, word in enumerate(_WORDS.split())}
NUMBERS = dict(list(_TO_NINETEEN.items())[:11])
VQA_NUMBERS = {**NUMBERS, "none": "0"}
MMNIAH_NUMBERS = {**_TO_NINETEEN, **{word: str(10 * i) for i, word in enumerate(_TENS.split(), 2)}}
ARTICLES = {"a", "an", "the"}


@cache
def contractions() -> dict[str, str]:
    """Return the published table: lower-case word without apostrophes -> with them (capitals can never match)."""
    table: dict[str, str] = json.loads((Path(__file__).parent / "contractions.json").read_text(encoding="utf-8"))
    return table


def strip_marks(value: str) -> str:
    """Delete marks or replace them by spaces, then delete the first 32 periods that no digit follows.

    A mark is deleted when it touches a space anywhere in the *given* text, or when digit-comma-digit occurs anywhere;
    else it becomes a space.
    """
    thousands = DIGIT_COMMA_DIGIT.search(value) is not None
    result = value
    for mark in MARKS:
        if mark in value:
            deleted = thousands or f"{mark} " in value or f" {mark}" in value
            result = result.replace(mark, "" if deleted else " ")
    return PERIOD.sub("", result, count=MAX_PERIODS)


def vqa_normalize(value: str, numbers: dict[str, str] = VQA_NUMBERS) -> str:
    """Normalize an answer as VQA does: lower case, marks, number words, articles, contractions.

    Source: the published evaluators; MM-NIAH passes `MMNIAH_NUMBERS`.
    """
    value = value.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    value = value.replace("\n", " ").replace("\t", " ").strip()
    words = [numbers.get(word, word) for word in strip_marks(value).lower().split()]
    table = contractions()
    return " ".join(table.get(word, word) for word in words if word not in ARTICLES)


def has_words(text: str, phrase: str) -> bool:
    """Return whether `phrase` occurs in `text` between word boundaries."""
    return re.search(rf"\b{re.escape(phrase)}\b", text) is not None
