"""OCRBench: containment of a reference in the reply. Source: lmms-eval."""

from collections.abc import Sequence

from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, takes

FULL_WIDTH = {**{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}, 0x3000: 0x20}
"""Full-width ASCII and the ideographic space -> their ordinary forms."""


def ocrbench_lmms(pred: str, answer: str | Sequence[str], dataset: str, *, compat: Compat = "upstream") -> int:
    """Return 1 iff some reference is inside the reply.

    Both are stripped and in lower case, with ordinary forms of full-width characters and spaces for line breaks; for
    HME100k (formulas) they are only without spaces. upstream: an empty reference is inside every reply. fixed: in none.
    """
    references = [answer] if isinstance(answer, str) else answer

    def clean(text: str) -> str:
        if dataset == "HME100k":
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.translate(FULL_WIDTH).lower().strip().replace("\n", " ")

    found = clean(pred.strip())
    return int(any(clean(reference) in found for reference in references if compat == "upstream" or clean(reference)))


SCORERS = {"ocrbench_lmms": Scorer(ocrbench_lmms, takes("pred", "answer", dataset="dataset"))}
