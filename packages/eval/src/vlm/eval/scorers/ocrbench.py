"""OCRBench: containment of a reference in the reply. Source: lmms-eval."""

from collections.abc import Sequence

from vlm.eval.measures.reply import FULL_WIDTH, answer_text, says
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, takes


def ocrbench_lmms(pred: str, answer: str | Sequence[str], dataset: str, *, compat: Compat = "upstream") -> int:
    """Return 1 iff some reference is inside the reply.

    Both are stripped and in lower case, with ordinary forms of full-width characters and spaces for line breaks; for
    HME100k (formulas) they are only without spaces. upstream: an empty reference is inside every reply. fixed: in none,
    and a reference must be whole words (other than after `not`), except in formulas.
    """
    references = [answer] if isinstance(answer, str) else answer

    def clean(text: str) -> str:
        if dataset == "HME100k":
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.translate(FULL_WIDTH).lower().strip().replace("\n", " ")

    found = clean((answer_text(pred) or pred if compat == "fixed" and dataset != "HME100k" else pred).strip())
    if compat == "fixed" and dataset != "HME100k":
        return int(any(clean(reference) and says(found, clean(reference)) for reference in references))
    return int(any(clean(reference) in found for reference in references if compat == "upstream" or clean(reference)))


SCORERS = {"ocrbench_lmms": Scorer(ocrbench_lmms, takes("pred", "answer", dataset="dataset"))}
