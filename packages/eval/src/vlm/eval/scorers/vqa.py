"""Open answers: exact match, relaxed accuracy (ChartQA), ANLS (DocVQA, InfoVQA), VQA accuracy, exact word match.

Every scorer returns 0..1. In `fixed` mode an empty prediction is always wrong.
"""

from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from vlm.eval.measures.text import Compat, vqa_normalize


def _all(references: str | Sequence[str]) -> list[str]:
    return [references] if isinstance(references, str) else list(references)


def exact_match_accuracy(prediction: str, annotation: str | Sequence[str], *, compat: Compat = "upstream") -> float:
    """1 if the stripped, lower-case texts are equal, best over references. Source: the published evaluators"""
    found = prediction.strip().lower()
    if compat == "fixed" and not found:
        return 0.0
    return float(any(found == reference.strip().lower() for reference in _all(annotation)))


def relaxed_accuracy(prediction: str, annotation: str | Sequence[str], *, compat: Compat = "upstream") -> float:
    """1 if two numbers differ by at most 5 %, or other texts are equal but for case; best over references.

    upstream: 5 % of the *prediction* (published argument mix-up), references unstripped. fixed: 5 % of the reference.
    Source: the published evaluators
    """
    found = prediction.strip()
    if compat == "fixed":
        return float(bool(found) and any(_close(found, reference.strip()) for reference in _all(annotation)))
    return float(any(_close(reference, found) for reference in _all(annotation)))


def _close(value: str, target: str) -> bool:
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
    """1 - edit distance / length, 0 below one half; best over references.

    Distances are between stripped, lower-case, space-collapsed texts, lengths those of the raw upper-cased ones.
    Source: the published evaluators (the published rule is kept; fixed only adds the empty prediction).
    """
    if compat == "fixed" and not prediction.strip():
        return 0.0
    found = " ".join(prediction.strip().lower().split())
    ratios = []
    for answer in answers:
        distance = Levenshtein.distance(" ".join(answer.strip().lower().split()), found)
        length = max(len(answer.upper()), len(prediction.upper()))
        ratios.append(distance / length if length else 0.0)
    score = 1 - min(ratios)
    return score if score >= 0.5 else 0.0


def evalai_normalizer(text: str, *, compat: Compat = "upstream") -> str:
    """The VQA answer clean-up, the same in both modes. Source: the published evaluators"""
    return vqa_normalize(text)


def vqa_accuracy(prediction: str, answers: Sequence[str], *, compat: Compat = "upstream") -> float:
    """Mean over references of min(1, matches among the others / 3). Source: the published evaluators

    Raises:
        AssertionError: upstream, for any other number of references than ten (as published).
    """
    if compat == "upstream" and len(answers) != 10:
        raise AssertionError(f"{len(answers)} references, the published scorer takes 10")
    found = vqa_normalize(prediction)
    if compat == "fixed" and not found:
        return 0.0
    return leave_one_out(found, [vqa_normalize(answer) for answer in answers])


def leave_one_out(found: str, references: Sequence[str]) -> float:
    """Mean over references of min(1, matches of `found` among the others / 3); with one reference 0 or 1."""
    same = Counter(references)[found]
    if len(references) == 1 or same == 0:
        return float(same)
    each = [min(1.0, (same - (reference == found)) / 3) for reference in references]
    return sum(each) / len(references)


def word_match(prediction: str, annotation: str, *, compat: Compat = "upstream") -> float:
    """1 if the reply is the reference word and nothing else; case and surrounding punctuation aside. Source: ours."""
    found = prediction.strip().strip(".,;:!?\"'*()").lower()
    return float(bool(found) and found == annotation.strip().lower())
