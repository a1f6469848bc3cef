"""Open answers: exact match, relaxed accuracy (ChartQA), ANLS (DocVQA, InfoVQA), VQA accuracy, one exact word.

Every scorer returns 0 to 1. In `fixed` mode an empty prediction is always wrong.

    anls("a cats", ["a cat", "the cat"])                       # 0.833: one edit in six characters
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from vlm.eval.loaders.common import Item
from vlm.eval.measures.short import close_number, same_answer, short_answers, strict_normal, tidy
from vlm.eval.measures.text import Compat, vqa_normalize
from vlm.eval.scorers.scorer import Scorer, takes


def _all(references: str | Sequence[str]) -> list[str]:
    return [references] if isinstance(references, str) else list(references)


def exact_match_accuracy(prediction: str, annotation: str | Sequence[str], *, compat: Compat = "upstream") -> float:
    """Return 1 if the stripped, lower-case texts are equal, best over references. fixed: `same_answer`.

    Source: the published evaluators.
    """
    if compat == "fixed":
        return float(any(same_answer(prediction, reference) for reference in _all(annotation)))
    found = prediction.strip().lower()
    return float(any(found == reference.strip().lower() for reference in _all(annotation)))


def relaxed_accuracy(prediction: str, annotation: str | Sequence[str], *, compat: Compat = "upstream") -> float:
    """Return 1 if numbers differ by at most 5 %, or other texts are equal but for case; best over references.

    upstream: 5 % of the *prediction* (arguments mixed up, as published), references not stripped. fixed: 5 % of the
    reference, numbers and texts as a person reads them (`close_number`, `same_answer`). Source: the published
    evaluators.
    """
    if compat == "fixed":
        return float(any(_right(prediction, reference) for reference in _all(annotation)))
    found = prediction.strip()
    return float(any(near(reference, found) for reference in _all(annotation)))


def _right(prediction: str, reference: str) -> bool:
    close = close_number(prediction, reference)
    return same_answer(prediction, reference) if close is None else close


def near(value: str, target: str) -> bool:
    """Return whether two numbers differ by at most 5 % of the second, or other texts are equal but for case."""
    a, b = _number(value), _number(target)
    if a is not None and b:
        return abs(a - b) / abs(b) <= 0.05
    return value.lower() == target.lower()


def _number(value: str) -> float | None:
    try:
        return float(value.rstrip("%")) / 100 if value.endswith("%") else float(value)
    except ValueError:
        return None


def anls(prediction: str, answers: Sequence[str], *, compat: Compat = "upstream") -> float:
    """Return 1 - edit distance / length, 0 below one half; best over references.

    Distances are between stripped, lower-case texts with single spaces; lengths are of the raw texts in upper case.
    Source: the published evaluators. fixed: the best over the short answers of the reply, an empty one is wrong.
    """
    if compat == "fixed":
        each = [anls(one, [tidy(answer) for answer in answers]) for one in short_answers(prediction)]
        return max(each, default=0.0)
    found = " ".join(prediction.strip().lower().split())
    ratios = []
    for answer in answers:
        distance = Levenshtein.distance(" ".join(answer.strip().lower().split()), found)
        length = max(len(answer.upper()), len(prediction.upper()))
        ratios.append(distance / length if length else 0.0)
    score = 1 - min(ratios)
    return score if score >= 0.5 else 0.0


def evalai_normalizer(text: str, *, compat: Compat = "upstream") -> str:
    """Normalize an answer as VQA does, the same in both modes. Source: the published evaluators."""
    return vqa_normalize(text)


def vqa_accuracy(prediction: str, answers: Sequence[str], *, compat: Compat = "upstream") -> float:
    """Return the mean over references of min(1, matches among the others / 3). Source: the published evaluators.

    fixed: the best over the short answers of the reply; a sign and a letter that is also an article are kept.

    Raises:
        AssertionError: upstream, for any other number of references than ten (as published).
    """
    if compat == "upstream" and len(answers) != 10:
        raise AssertionError(f"{len(answers)} references, the published scorer takes 10")
    if compat == "fixed":
        known = [strict_normal(answer) for answer in answers]
        return max((leave_one_out(strict_normal(one), known) for one in short_answers(prediction)), default=0.0)
    return leave_one_out(vqa_normalize(prediction), [vqa_normalize(answer) for answer in answers])


def leave_one_out(found: str, references: Sequence[str]) -> float:
    """Return the mean over references of min(1, matches of `found` among the others / 3); with one reference 0 or 1."""
    same = Counter(references)[found]
    if len(references) == 1 or same == 0:
        return float(same)
    each = [min(1.0, (same - (reference == found)) / 3) for reference in references]
    return sum(each) / len(references)


def word_match(prediction: str, annotation: str, *, compat: Compat = "upstream") -> float:
    """Return 1 if the reply is just the reference, without case and surrounding punctuation. Source: ours.

    fixed: `same_answer`, so that a sentence may say it.
    """
    if compat == "fixed":
        return float(same_answer(prediction, annotation))
    found = prediction.strip().strip(".,;:!?\"'*()").lower()
    return float(bool(found) and found == annotation.strip().lower())


def _references(item: Item, completion: str) -> dict[str, Any]:
    return {"prediction": completion, "answers": item.gold if isinstance(item.gold, list) else [item.gold]}


SCORERS = {
    "anls": Scorer(anls, _references),
    "evalai_normalizer": Scorer(evalai_normalizer),
    "exact_match_accuracy": Scorer(exact_match_accuracy, takes("prediction", "annotation")),
    "relaxed_accuracy": Scorer(relaxed_accuracy, takes("prediction", "annotation")),
    "vqa_accuracy": Scorer(vqa_accuracy, _references),
    "word_match": Scorer(word_match, takes("prediction", "annotation")),
}
