"""What a judge said, and means of its grades. Source: MM-Vet (scale and capabilities); how a judge is read: ours.

A letter or number counts when it stands alone. All else has no meaning (None): nothing is guessed from the beginning
of a word.
"""

import json
import math
import re
from collections.abc import Collection, Sequence
from contextlib import suppress

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.reply import answer_text, ends, letters_alone
from vlm.eval.measures.rows import Answers, Metric, ResultRow
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, takes

LABELED = re.compile(
    r"(?:(?:so |thus |my |the |a )?(?:final )?(?:correctness |total )?(?:score|grade|rating|correctness|mark)"
    r"(?: (?:is|would be|of))?\s*[:=]?\s*)?",
    re.IGNORECASE,
)
GRADE = re.compile(r"(?:0?\.\d+|0(?:\.\d+)?|1(?:\.0+)?)(?![\d]|[.,]\d)")
ANOTHER = re.compile(
    r"\s*(?:%|per ?cent|°|(?:/|out of|of)\s*(?!1(?:\.0+)?(?![\d.,/]))\S"
    r"|[-–—~]\s*\.?\d|(?:to|or|and)\s+\.?\d|,\s*[01]?\.\d)",
    re.IGNORECASE,
)
"""What makes a number another than it looks: percent, a share of ten, a range, a list."""

HEDGES = re.compile(r"\b(?:both|either|neither|none of|any of|all of)\b", re.IGNORECASE)
SMALL = re.compile(
    r"(?:(?:the |my )?(?:(?:final|correct|best|right) )?(?:answer|option|letter|choice)(?: is)?\s*[:=]?\s*)?"
    r"\(?([a-z])\)?\s*(?:[.:),].*)?",
    re.IGNORECASE | re.DOTALL,
)


def judge_grade(reply: str, *, compat: Compat = "upstream") -> float:
    """Return the grade, 0.0 to 1.0, with which the reply of a judge begins. The same in both modes.

    A share of another number (`1 out of 10`), a percentage, a range and a decimal comma are no grades.

    >>> judge_grade("Score: 0.5"), judge_grade("1/1")
    (0.5, 1.0)

    Raises:
        ValueError: It begins with something else.
    """
    said = ends(answer_text(reply)).strip(" |\n\t\"'()[]")
    label = LABELED.match(said)
    match = GRADE.match(said, label.end() if label else 0)
    if match is None or ANOTHER.match(said, match.end()):
        raise ValueError(f"the judge said {reply.strip()[:60]!r}, not a number from 0.0 to 1.0")
    return float(match[0])


def read_grade(reply: str) -> str | None:
    """Read a judge's grade as text; None when there is none."""
    try:
        return str(judge_grade(reply))
    except ValueError:
        return None


def judge_letter(reply: str, letters: Collection[str]) -> str | None:
    """Read a judge's reply as the only one of `letters` that stands alone; None for none, several, or an article.

    A small letter counts as the whole reply, at its start before a mark, or after `Answer:`.

    >>> [judge_letter(reply, "ABZ") for reply in ("Answer: B", "(b)", "Both", "A or B", "A dog", "Z")]
    ['B', 'B', None, None, None, 'Z']
    """
    said = ends(answer_text(reply)).strip(" |\n\t\"'")
    alone = {mention.letter for mention in letters_alone(said, letters)}
    if HEDGES.search(said):
        return None
    if alone:
        return alone.pop() if len(alone) == 1 else None
    small = SMALL.fullmatch(said)
    return small[1].upper() if small and small[1].islower() and small[1].upper() in letters else None


def judge_extraction(reply: str, choices: Sequence[str], *, number: bool = False) -> str | None:
    """Read the answer that a judge extracted: "" where it found none, None when it cannot be read.

    Args:
        reply: The judge's words; the first line counts.
        choices: The options of a question to choose from, one of which (its letter, or its text) must be named.
        number: Whether the answer is a number, which must stand alone and be finite.
    """
    line = answer_text(reply).split("\n", 1)[0].strip()
    found = line.removeprefix("Extracted answer:").strip()
    if not found or len(line) > 200:
        return None
    if found.rstrip(".").lower() in ("none", "n/a"):
        return ""
    if choices and found not in choices:
        same = [choice for choice in choices if choice.strip().lower() == found.rstrip(".").lower()]
        return same[0] if len(same) == 1 else judge_letter(found, [chr(65 + i) for i in range(len(choices))])
    return None if number and not is_number(found) else found


def judge_counts(reply: str, *, found: str, total: str | int | None = None, most: int | None = None) -> str | None:
    """Read a number, or `number/total`, in the last JSON object of a judge's reply; None when it cannot be read.

    Args:
        reply: The judge's words.
        found: Key of the number.
        total: Key of the total, or the total itself.
        most: The largest number; by default the total.

    >>> judge_counts('Two of them hold. {"recall": 2}', found="recall", total=5)
    '2/5'
    >>> judge_counts('{"precision": 4, "sentence_count": 3}', found="precision", total="sentence_count") is None
    True
    """
    said: dict[str, object] = {}
    for candidate in re.findall(r"\{[^{}]*\}", answer_text(reply)):
        with suppress(ValueError):
            said = json.loads(candidate)
    value, of = said.get(found), said.get(total) if isinstance(total, str) else total
    if not isinstance(value, int) or isinstance(value, bool) or isinstance(of, bool):
        return None
    if total is None:
        return str(value) if 0 <= value <= (most or 0) else None
    return f"{value}/{of}" if isinstance(of, int) and 0 <= value <= of else None


def is_number(text: str) -> bool:
    """Tell whether a text is one finite number in digits and nothing else."""
    return bool(
        re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", text.strip(), re.ASCII)
    ) and math.isfinite(float(text))


def mmvet(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean grade of all questions, and of those that need each capability (a question may need several)."""
    capabilities = sorted({name for row in rows for name in row["meta"]["capability"]})
    parts = {name: [row for row in rows if name in row["meta"]["capability"]] for name in capabilities}
    return [Answers(rows, compat).mean("grade"), *[Answers(p, compat).mean(f"grade/{n}") for n, p in parts.items()]]


SCORERS = {"judge_grade": Scorer(judge_grade, takes("reply"), judged="reply", needs_judge=True)}
AGGREGATES = {"mmvet": mmvet}
