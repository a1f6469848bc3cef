"""MMBench: letters and texts of options from replies, without a judge. Source: VLMEvalKit.

What the rules cannot read is left to a judge, or wrong. The published one takes the first letter of a word after
`answer is` for an option (`The answer is a dog`); the corrected one reads letters as all other benchmarks.
"""

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from vlm.eval.measures.letters import read_label
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, as_answer, takes

NO_REPLY = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
ANNOUNCED = re.compile(r"answer\s+is\s+\**([a-d])", re.IGNORECASE)
SPACED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def vlmevalkit_can_infer(answer: Any, choices: Mapping[str, Any], *, compat: Compat = "upstream") -> str | bool:
    """Return the option (letter -> text) that a reply names, `Z` for a refusal, or False: left to a judge.

    fixed: the letter that `read_label` finds. upstream:

    It is the only letter of an option that stands alone, unless five or more words from the end; else what follows
    `answer is` (even the first letter of a word); else the only option whose text is inside a reply of moderate length.

    Raises:
        AssertionError: An option that is no capital letter (as published).
    """
    answer = str(answer)
    if compat == "fixed":
        last = max((ascii_uppercase.index(letter) + 1 for letter in choices), default=0)
        found = read_label(answer, [str(choices.get(letter, "")) for letter in ascii_uppercase[:last]])
        return found if found in choices else False
    found = named_letter(answer, choices) or announced_letter(answer, choices)
    return found or only_text(answer, choices, ascii_uppercase, bounded=True)


def named_letter(answer: str, choices: Mapping[str, Any]) -> str:
    """Return the only letter of an option that stands alone in a reply, unless five or more words from the end.

    `Z` for a refusal, "" where there is none.
    """
    if NO_REPLY in answer:
        return ""
    if any(refusal in answer for refusal in REFUSALS):
        return "Z"
    words = answer.translate(SPACED).split()
    alone = [letter for letter in choices if letter in words]
    if len(alone) == 1 and words.index(alone[0]) > len(words) - 5:
        return alone[0]
    return "Z" if not alone and "Z" in words else ""


def announced_letter(answer: str, choices: Mapping[str, Any]) -> str:
    """Return the letter behind `answer is`, even the first of a word; "" where there is none."""
    announced = None if NO_REPLY in answer else ANNOUNCED.search(answer)
    return announced[1].upper() if announced and announced[1].upper() in choices else ""


def only_text(answer: str, choices: Mapping[str, Any], letters: str, bounded: bool = False) -> str | bool:
    """Return the letter of the only option whose text is inside the reply, else False.

    Args:
        answer: The reply.
        choices: Letter -> text.
        letters: The letters that options may have.
        bounded: Whether a reply of more than twice the length of all options names none.

    Raises:
        AssertionError: An option has another letter (as published).
    """
    answer = answer.lower()
    if bounded and len(answer) > 2 * sum(len(str(text)) for text in choices.values()):
        return False
    if any(letter not in letters for letter in choices):
        raise AssertionError(f"options {list(choices)}, expected letters of {letters}")
    inside = [letter for letter, text in choices.items() if str(text).lower() in answer]
    return inside[0] if len(inside) == 1 else False


SCORERS = {"vlmevalkit_can_infer": Scorer(vlmevalkit_can_infer, takes("answer", choices="options"), as_answer)}
