"""GQA: predictions as the official script reads them, and its accuracies. Source: the published evaluators"""

from collections.abc import Mapping, Sequence

from vlm.eval.measures.text import Compat


def gqa_convert(answer: str, *, compat: Compat = "upstream") -> str:
    """The reply as a prediction: no final periods, lower case.

    upstream: white space stays, so that `yes ` is wrong. fixed: white space goes too.
    """
    if compat == "fixed":
        answer = answer.strip().rstrip(".").strip()
    return answer.rstrip(".").lower()


def gqa_accuracy_single(answer: str, prediction: str, *, compat: Compat = "upstream") -> int:
    """1 iff the converted reply is the answer; fixed: and not empty."""
    found = gqa_convert(prediction, compat=compat)
    return int(found == answer and bool(found or compat == "upstream"))


def gqa_official(items: Sequence[Mapping[str, str]], *, compat: Compat = "upstream") -> dict[str, float]:
    """Percentages (two decimals) `binary` (`structural` is not query), `open` and `accuracy`; 0 for no items.

    upstream: predictions as given, converted beforehand. fixed: raw replies are converted here.
    """

    def percent(kinds: tuple[bool, ...]) -> float:
        chosen = [item for item in items if (item["structural"] == "query") in kinds]
        right = sum(
            item["prediction"] == item["answer"]
            if compat == "upstream"
            else gqa_accuracy_single(item["answer"], item["prediction"], compat="fixed")
            for item in chosen
        )
        return round(right / len(chosen) * 100, 2) if chosen else 0.0

    return {"binary": percent((False,)), "open": percent((True,)), "accuracy": percent((True, False))}
