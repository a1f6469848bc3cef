"""One reply -> one score, and the scores of a benchmark -> its metrics.

score = score_item(table, item, completion)                    # published rule
strict = score_item(table, item, completion, "fixed")          # faults of the published rule corrected
metrics = aggregate(table, rows)                               # rows as in results.jsonl
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.core.errors import UnknownName
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import Item
from vlm.eval.scorers import SCORERS
from vlm.eval.scorers.aggregate import AGGREGATES, Metric, Row
from vlm.eval.scorers.text import Compat

__all__ = ["Metric", "Score", "aggregate", "score_item"]


@dataclass(frozen=True)
class Score:
    """What was read from a reply, its value 0..1 (None: not scored), and why, in words."""

    extracted: str
    value: float | None
    why: str


def _pair(prediction: str, reference: str) -> Callable[[Item, str], dict[str, Any]]:
    return lambda item, completion: {prediction: completion, reference: item.gold}


def _references(item: Item, completion: str) -> dict[str, Any]:
    return {"prediction": completion, "answers": item.gold if isinstance(item.gold, list) else [item.gold]}


def _options(item: Item, completion: str) -> dict[str, Any]:
    inputs = {"pred_response": completion, "gt_response": item.gold, "choice_list": item.meta["choice_list"]}
    return inputs | {"n_images": item.meta["n_images"]}


INPUTS: dict[str, Callable[[Item, str], dict[str, Any]]] = {
    "anls": _references,
    "exact_match_accuracy": _pair("prediction", "annotation"),
    "milebench_contains": _pair("pred_response", "gt_response"),
    "milebench_multichoice": _options,
    "milebench_needle": _pair("pred_response", "gt_response"),
    "milebench_rouge_l": _pair("pred_response", "gt_response"),
    "mmniah_choice": lambda item, completion: {
        "response": completion,
        "answer": item.gold,
        "n_choices": item.meta["n_choices"],
    },
    "mmniah_counting": _pair("response", "answer"),
    "mmniah_text": _pair("response", "answer"),
    "pope_parse": lambda item, completion: {"text": completion},
    "relaxed_accuracy": _pair("prediction", "annotation"),
    "vqa_accuracy": _references,
    "word_match": _pair("prediction", "annotation"),
}
"""Scorer name -> the inputs it takes from an item and its reply."""


def score_item(benchmark: Benchmark, item: Item, completion: str | None, compat: Compat = "upstream") -> Score:
    """The score of one reply. `completion` None means that the model did not answer: never scored.

    A published scorer that stops with an error on this reply counts it as wrong here, and says so. An empty reply that
    a published rule takes for right is kept in upstream mode, is named in `why`, and is wrong in fixed mode.

    Raises:
        UnknownName: the table names no known scorer.
    """
    if completion is None:
        return Score("", None, "no answer")
    name = benchmark.scorer_of(item.group)
    if name not in INPUTS:
        raise UnknownName("scorer", name, INPUTS)
    if compat == "fixed" and not completion.strip():
        return Score("", 0.0, "empty reply")
    try:
        result = SCORERS[name](**INPUTS[name](item, completion), compat=compat)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        if compat == "fixed":
            raise
        return Score("", 0.0, f"wrong: the published scorer stops with {type(error).__name__}: {error}")
    extracted = completion.strip()
    if isinstance(result, dict):
        extracted, value = result["extracted"], float(result["score"])
    elif name == "pope_parse":
        extracted, value = result, float(result == item.gold)
    else:
        value = float(result)
    verdict = "right" if value == 1 else "wrong" if value == 0 else f"{value:.3f}"
    empty = ", although the reply is empty" if value and not completion.strip() else ""
    return Score(extracted, value, f"{verdict} by {name}: read {extracted!r:.80}, expected {item.gold!r:.80}{empty}")


def aggregate(benchmark: Benchmark, rows: Sequence[Row], compat: Compat = "upstream") -> list[Metric]:
    """The metrics of a benchmark, the headline first, from rows of results.jsonl (`score`; fixed: `strict_score`).

    Rows without an answer (oom, error, refused) are in `n_total` and in no mean. A metric that cannot be computed has
    value None and a note.

    Raises:
        UnknownName: the table names no known aggregate.
    """
    if benchmark.aggregate not in AGGREGATES:
        raise UnknownName("aggregate", benchmark.aggregate, AGGREGATES)
    return AGGREGATES[benchmark.aggregate](benchmark, rows, compat)
