"""MVBench: letters from replies. Source: the published evaluator."""

from string import ascii_uppercase

from vlm.eval.measures.short import same_answer
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import read_letter
from vlm.eval.scorers.scorer import Scorer, takes


def mvbench_check_ans(pred: str, gt: str, *, compat: Compat = "upstream") -> bool:
    """Return whether the reply names the option of a reference like `(A) text`.

    upstream: one of the lower-case first words must be inside the other, so that an empty reply, `.`, and a reply that
    starts with a space are right, and `option A` is wrong. fixed: the letter of the reply, or the option's whole text.

    Raises:
        IndexError: upstream, for a reference without a text (as published).
    """
    if compat == "fixed":
        letter, _, text = gt.strip().removeprefix("(").partition(")")
        options = dict.fromkeys("ABCDE" + (letter if letter in tuple(ascii_uppercase) else ""), "")
        read = read_letter(pred, options)
        return read == letter or (not read and same_answer(pred, text))
    word = pred.replace("Answer: ", "").lower().split(" ")[0]
    gold, _, text = gt.lower().partition(" ")
    if not text:
        raise IndexError("a reference without a text")
    return word.replace(".", "") in gold or gold in word


SCORERS = {"mvbench_check_ans": Scorer(mvbench_check_ans, takes("pred", "gt"))}
