"""MMBench: letters and option texts from replies without a judge, and circular groups (each copy rotates the options).

Copy k of question i has the index i + k * 1,000,000. The rules are the same in both modes: nothing in them is decided
by a fault, and what they cannot read is left to a judge, or wrong.
"""

import math
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import mcq_letter_extract

ROTATION = 1_000_000
NO_REPLY = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
ANNOUNCED = re.compile(r"answer\s+is\s+\**([a-d])", re.IGNORECASE)
SPACED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def vlmevalkit_can_infer(answer: Any, choices: Mapping[str, Any], *, compat: Compat = "upstream") -> str | bool:
    """The option (letter -> text) a reply names, `Z` for a refusal, or False: left to a judge. Source: VLMEvalKit

    The only option letter that stands alone, unless five or more words from the end; else what follows `answer is`
    (even the first letter of a word); else the only option whose text is inside a reply of moderate length.

    Raises:
        AssertionError: an option that is no capital letter (as published).
    """
    answer = str(answer)
    return _named_letter(answer, choices) or _only_text(answer, choices, ascii_uppercase, bounded=True)


def _named_letter(answer: str, choices: Mapping[str, Any]) -> str | bool:
    if NO_REPLY in answer:
        return False
    if any(refusal in answer for refusal in REFUSALS):
        return "Z"
    words = answer.translate(SPACED).split()
    alone = [letter for letter in choices if letter in words]
    if len(alone) == 1 and words.index(alone[0]) > len(words) - 5:
        return alone[0]
    if not alone and "Z" in words:
        return "Z"
    announced = ANNOUNCED.search(answer)
    return announced[1].upper() if announced and announced[1].upper() in choices else False


def _only_text(answer: str, choices: Mapping[str, Any], letters: str, bounded: bool = False) -> str | bool:
    answer = answer.lower()
    if bounded and len(answer) > 2 * sum(len(str(text)) for text in choices.values()):
        return False
    if any(letter not in letters for letter in choices):
        raise AssertionError(f"options {list(choices)}, expected letters of {letters}")
    inside = [letter for letter, text in choices.items() if str(text).lower() in answer]
    return inside[0] if len(inside) == 1 else False


def _options(row: Mapping[str, Any], letters: str) -> dict[str, Any]:
    """The filled options; a table marks an absent one by None or NaN."""
    texts = {letter: row[letter] for letter in letters}
    return {key: text for key, text in texts.items() if text is not None and text == text}


def mmbench_circular_prefetch(rows: Sequence[Mapping[str, Any]], *, compat: Compat = "upstream") -> int | None:
    """One circular group (`GT`, `prediction`, `A`...): 1 all copies right, 0 some copy read as wrong, None left to the
    judge, and wrong without one. Source: VLMEvalKit"""
    found = [
        (
            row["GT"],
            vlmevalkit_can_infer(row["prediction"], _options(row, "".join(c for c in ascii_uppercase if c in row))),
        )
        for row in rows
    ]
    if any(letter and letter != gold for gold, letter in found):
        return 0
    return 1 if all(letter for _, letter in found) else None


def mmbench_static_lmms(rows: Sequence[Mapping[str, Any]], *, compat: Compat = "upstream") -> dict[str, float]:
    """`overall`: share of questions (`index` below 1,000,000) of which every copy is right; NaN without any.

    Rows hold `index`, `answer`, `prediction`, `A` to `D`. Source: lmms-eval's evaluator with `static`

    Raises:
        KeyError: a row without one of its columns.
    """
    groups: dict[int, list[bool]] = {row["index"]: [] for row in rows if row["index"] < ROTATION}
    for row in rows:
        if (number := row["index"] % ROTATION) in groups:
            groups[number].append(_static_letter(row) == row["answer"])
    return {"overall": sum(map(all, groups.values())) / len(groups) if groups else math.nan}


def _static_letter(row: Mapping[str, Any]) -> str | bool:
    options, reply = _options(row, "ABCD"), str(row["prediction"])
    letter = _listed_letter(reply) or _only_text(reply, options, "ABCD")
    return letter or mcq_letter_extract(reply, choices=sorted(options) or "ABCDEFGH")


def _listed_letter(reply: str) -> str | bool:
    """The only letter of A to E that is a word, bare or in the first of `FORMS` that has just one."""
    if NO_REPLY in reply:
        return False
    words = set(reply.split())
    bare = [letter for letter in "ABCDE" if letter in words]
    if len(bare) == 1 and not ("A" in words and len(reply.split()) > 3):  # an A in a sentence may be the article
        return bare[0]
    for form in FORMS:
        formed = [letter for letter in "ABCDE" if form.format(letter) in words]
        if len(formed) == 1:
            return formed[0]
    return False
