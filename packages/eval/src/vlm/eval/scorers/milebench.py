"""MileBench: clean-up, letters from replies, needles, containment, ROUGE-L. Source: the published evaluators"""

import re
from collections.abc import Sequence
from typing import Any

from vlm.eval.measures.rouge import rouge_l
from vlm.eval.measures.text import Compat, has_words, strip_marks

ESCAPED = set("\\.^$*+?{}[]|()")
"""Characters that are special in a regular expression and that the published matcher escapes."""


def milebench_process(text: str, *, compat: Compat = "upstream") -> str:
    """The published clean-up, the same in both modes; commas go with the other marks, not beforehand."""
    text = strip_marks(text.replace("\n", " ").replace("\t", " ").strip())
    return text.strip("'").strip('"').strip().lower()


def label(index: int) -> str:
    """A to Z, then AA, AB, ..., then BA, BB, ..."""
    return ("" if index < 26 else "A" if index < 52 else "B") + chr(65 + index - 26 * min(index // 26, 2))


def milebench_multichoice(
    pred_response: str,
    gt_response: str,
    choice_list: Sequence[str],
    n_images: int = 2,
    *,
    compat: Compat = "upstream",
) -> dict[str, Any]:
    """The chosen label (`extracted`), `score` 0 or 1, and the sums by number of images (`levels`).

    upstream: an empty reply is C, `The answer is B` is AB, `10` hits the option `1`. fixed: `first_label`.

    Raises:
        AssertionError: the answer is not among the options (as published).
    """
    options = [milebench_process(choice) for choice in choice_list]
    gold = milebench_process(gt_response)
    if gold not in options:
        raise AssertionError(f"{gt_response!r} is not an option")
    if compat == "upstream":
        found = _match(milebench_process(pred_response), options)
    else:
        found = first_label(pred_response, choice_list)
    score = int(found == label(options.index(gold)))
    level = "Few" if n_images < 6 else "Medium" if n_images <= 31 else "Many"
    levels = {name: [float(score), 1.0] if name == level else [0.0, 0.0] for name in ("Few", "Medium", "Many")}
    return {"extracted": found, "score": score, "accuracy": float(score), "levels": levels}


def _match(reply: str, options: Sequence[str]) -> str:
    if not reply:
        return "C"
    labels = [label(i) for i in range(len(options))]
    titled = [milebench_process(f"{name} {option}") for name, option in zip(labels, options, strict=True)]
    if hit := re.search("|".join(map(re.escape, titled)), reply):
        return hit[0][:1].upper()
    tight = [milebench_process(option).replace(" ", "") for option in options]  # cleaned twice, as published
    if hit := re.search("|".join(map(re.escape, tight)), reply.replace(" ", "")):
        for name, option in zip(labels, tight, strict=True):
            # the published matcher compares the hit with the escaped text: an option with such a character never wins
            if hit[0] == option and not ESCAPED & set(option):
                return name
    if len(reply) <= 2 and reply.upper() in labels:
        return reply.upper()
    return "".join(letter.upper() for letter in reply if letter.upper() in labels)


def first_label(reply: str, options: Sequence[str]) -> str:
    """Our reading of a reply to lettered options: the text of an option, else the first label that stands alone (a
    small letter only as the whole reply or right at its start before a mark), else the one option it mentions;
    "" when it says none or several. Source: ours."""
    clean = milebench_process(reply)
    texts = [milebench_process(option) for option in options]
    if not clean:
        return ""
    if texts.count(clean) == 1:
        return label(texts.index(clean))
    labels = {label(i) for i in range(len(texts))}
    start = re.match(r"\W*([A-Za-z]{1,2})\W*$|\W*([A-Za-z]{1,2})[.):,]", reply.strip())
    if start and (start[1] or start[2]).upper() in labels:
        return (start[1] or start[2]).upper()
    mentioned = [i for i, option in enumerate(texts) if option and has_words(clean, option)]
    for found in re.findall(r"\b[A-Z]{1,2}\b", reply):
        article = found == "A" and re.search(r"\bA\s+[a-z]", reply)
        if found in labels and not article:
            return found
    return label(mentioned[0]) if len(mentioned) == 1 else ""


def milebench_rouge_l(pred_response: str, gt_response: str, *, compat: Compat = "upstream") -> float:
    """ROUGE-L f of the cleaned texts, 0 for an empty reply.

    Raises:
        AssertionError, ValueError: upstream, when the reference (or either text's sentences) is empty, as published.
    """
    found, gold = milebench_process(pred_response), milebench_process(gt_response)
    if compat == "fixed" and not (found.strip(". ") and gold.strip(". ")):
        return 0.0
    if not gold:
        raise AssertionError("empty reference")
    return rouge_l(found, gold) if found else 0.0


def milebench_needle(pred_response: str, gt_response: str, *, compat: Compat = "upstream") -> int:
    """1 iff the cleaned reference is one white-space token of the cleaned reply (fixed: or a phrase of whole words)."""
    found, gold = milebench_process(pred_response), milebench_process(gt_response)
    if gold in found.split():
        return 1
    return int(compat == "fixed" and " " in gold and has_words(found, gold))


def milebench_contains(pred_response: str, gt_response: str, *, compat: Compat = "upstream") -> int:
    """1 iff the cleaned reference is a substring of the cleaned reply (fixed: at word boundaries, and not empty)."""
    found, gold = milebench_process(pred_response), milebench_process(gt_response)
    if compat == "upstream":
        return int(gold in found)
    return int(bool(gold) and re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", found) is not None)
