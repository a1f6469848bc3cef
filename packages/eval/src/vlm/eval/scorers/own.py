"""Scorers of a person's own benchmark, by the names that `vlm eval FILE --scorer` takes. Source: ours.

exact, relaxed, anls and judge are rules of published benchmarks under a short name; choice, contains and number are
ours. Those read a reply as `fixed` rules do, in both modes: no published score has to be met.

    SCORERS["contains"]("It is a red bus.", ["bus", "coach"])        # 1.0
    SCORERS["number"]("About **1,200** people", "1200")              # 1.0
"""

import re
from collections.abc import Sequence
from typing import Any

from vlm.eval.loaders.common import Item
from vlm.eval.measures.letters import read_label
from vlm.eval.measures.reply import answer_text, says
from vlm.eval.measures.short import close_number
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.judged import judge_grade
from vlm.eval.scorers.scorer import Scorer, as_answer, takes
from vlm.eval.scorers.vqa import exact_match_accuracy, relaxed_accuracy

EQUAL = 1e-9
"""Relative difference up to which two numbers are one: they were written in decimals."""


def choice(reply: str, options: Sequence[str], *, compat: Compat = "upstream") -> str:
    """Read a reply to options, by their texts in order, as the label of one (A, B, ...); "" where it names none.

    >>> choice("I think it is the dog.", ["cat", "dog"])
    'B'
    """
    return read_label(reply, options)


def contains(prediction: str, annotation: str | Sequence[str], *, compat: Compat = "upstream") -> float:
    """Return 1 if a reference occurs in the reply as whole words, without case; best over references.

    fixed: in the answer after any reasoning, and not where it is denied (`not a cat`) or one of several (`cat or dog`).
    """
    references = [annotation] if isinstance(annotation, str) else annotation
    if compat == "fixed":
        said = _plain(answer_text(prediction))
        return float(any(_occurs(said, _plain(one)) and _is_claimed(said, _plain(one)) for one in references))
    return float(any(_occurs(_plain(prediction), _plain(one)) for one in references))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _occurs(text: str, phrase: str) -> bool:
    """Tell whether a phrase stands in a text: no part of a longer word or number."""
    if not phrase:
        return False
    before = r"(?<!\w)(?<!\d[.,])" if _ends_words(phrase[0]) else ""
    after = r"(?!\w)(?![.,]\d)" if _ends_words(phrase[-1]) else ""
    return re.search(before + re.escape(phrase) + after, text) is not None


def _is_claimed(text: str, phrase: str) -> bool:
    return says(text, phrase) or not _ends_words(phrase[0])


def _ends_words(letter: str) -> bool:
    """Tell whether a letter is of a script that writes blanks between words."""
    return letter.isalnum() and ord(letter) < 0x2E80


def number(
    prediction: str, annotation: str | Sequence[str], tolerance: float = 0.0, *, compat: Compat = "upstream"
) -> float:
    """Return 1 if the number that the reply gives is the reference; best over references.

    It is the only number of the reply, or of the short answer in it; `1,200`, `1200.0` and `1.2e3` are one. A reply
    with several numbers and no announced answer gives none.

    Args:
        prediction: The reply.
        annotation: The reference, or several.
        tolerance: Largest difference that is still right, as a share of the reference.
        compat: The same in both modes.
    """
    references = [annotation] if isinstance(annotation, str) else annotation
    return float(any(close_number(prediction, one, max(tolerance, EQUAL)) for one in references))


def _options(item: Item, completion: str) -> dict[str, Any]:
    return {"reply": completion, "options": list(item.meta["options"].values())}


SCORERS = {
    "choice": Scorer(choice, _options, as_answer),
    "contains": Scorer(contains, takes("prediction", "annotation")),
    "exact": Scorer(exact_match_accuracy, takes("prediction", "annotation")),
    "judge": Scorer(judge_grade, takes("reply"), judged="reply", needs_judge=True),
    "number": Scorer(number, takes("prediction", "annotation", tolerance="tolerance")),
    "relaxed": Scorer(relaxed_accuracy, takes("prediction", "annotation")),
}
