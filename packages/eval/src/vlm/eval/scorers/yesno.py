"""Yes/no benchmarks: POPE."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlm.eval.measures.text import Compat


def pope_parse(text: str, *, compat: Compat = "upstream") -> str:
    """The reply as yes or no.

    upstream: "no" iff one of the space-separated words before the first period is exactly No, no or not, else "yes";
    an empty reply is a yes. fixed: "yes", "no", or "unknown" when the words say neither or both.
    Source: the published evaluators
    """
    if compat == "upstream":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    found = re.findall(r"[\w']+", text.lower().replace("’", "'"))
    if found and found[0] in ("yes", "no"):
        return found[0]
    yes = "yes" in found
    no = any(word in ("no", "not") or word.endswith("n't") for word in found)
    return "unknown" if yes == no else "yes" if yes else "no"


def pope_metrics(texts: Sequence[str], labels: Sequence[str], *, compat: Compat = "upstream") -> dict[str, Any]:
    """TP, FP, TN, FN (yes is positive), accuracy, precision, recall, f1, yes_ratio of one category; fractions.

    upstream: paired by order, the longer list silently cut, undefined ratios raise ZeroDivisionError. fixed: equal
    lengths required, an unknown reply is wrong whatever the label, undefined ratios are None.
    Source: the published evaluators

    Raises:
        ZeroDivisionError: upstream, without positives. ValueError: fixed, for lists of different length.
    """
    replies = [pope_parse(text, compat=compat) for text in texts]
    pairs = list(zip(replies, labels, strict=compat == "fixed"))
    right = {"yes": "TP", "no": "TN"}
    wrong = {"yes": "FN", "no": "FP"}
    found = Counter(right[label] if reply == label else wrong[label] for reply, label in pairs)
    counts = {key: found[key] for key in ("TP", "FP", "TN", "FN")}
    tp, fp, tn, fn = counts.values()
    n = tp + fp + tn + fn
    if compat == "fixed":
        return {
            **counts,
            "accuracy": (tp + tn) / n if n else None,
            "precision": tp / (tp + fp) if tp + fp else None,
            "recall": tp / (tp + fn) if tp + fn else None,
            "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
            "yes_ratio": replies.count("yes") / n if n else None,
        }
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    accuracy, yes_ratio = (tp + tn) / n, replies.count("yes") / len(replies)
    return {
        **counts,
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": yes_ratio,
    }
