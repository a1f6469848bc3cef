"""GQA: replies as the official script reads them, and accuracies of binary and open questions.

Source: the published evaluators.
"""

from collections.abc import Sequence

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import Answers, Metric, ResultRow, plain
from vlm.eval.measures.short import same_answer
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, takes


def gqa_convert(answer: str, *, compat: Compat = "upstream") -> str:
    """Turn a reply into a prediction: no final periods, lower case.

    upstream: white space is kept, so that `yes ` is wrong. fixed: white space is removed too.
    """
    if compat == "fixed":
        answer = answer.strip().rstrip(".").strip()
    return answer.rstrip(".").lower()


def gqa_accuracy_single(answer: str, prediction: str, *, compat: Compat = "upstream") -> int:
    """Return 1 iff the converted reply is the answer. fixed: `same_answer`."""
    if compat == "fixed":
        return int(same_answer(prediction, answer))
    return int(gqa_convert(prediction) == answer)


def gqa(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the accuracy of all questions, of binary ones, and of open ones (structural type `query`)."""
    kinds: dict[str, list[ResultRow]] = {"binary": [], "open": []}
    for row in rows:
        kinds["open" if row["meta"]["structural"] == "query" else "binary"].append(row)
    return [*plain(rows, compat), *[Answers(part, compat).mean(kind) for kind, part in kinds.items()]]


SCORERS = {
    "gqa_accuracy_single": Scorer(gqa_accuracy_single, takes("prediction", "answer")),
    "gqa_convert": Scorer(gqa_convert),
}
AGGREGATES = {"gqa": gqa}
