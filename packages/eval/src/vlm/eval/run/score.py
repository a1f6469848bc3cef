"""One reply -> one score, and the scores of a benchmark -> its metrics.

score = score_item(table, item, completion)                    # published rule
strict = score_item(table, item, completion, "fixed")          # faults of the published rule corrected
metrics = aggregate(table, rows)                               # rows as in results.jsonl
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.core.errors import UnknownName
from vlm.eval.backends.judge import ENDED, Verdict
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import Item
from vlm.eval.measures.rows import Metric, Row
from vlm.eval.measures.text import Compat
from vlm.eval.scorers import SCORERS
from vlm.eval.scorers.aggregate import AGGREGATES
from vlm.eval.scorers.longvqa import longvqa_rectify
from vlm.eval.scorers.mathvista import mathvista_quick_extract

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


def _from_meta(prediction: str, reference: str, *keys: str) -> Callable[[Item, str], dict[str, Any]]:
    """A reply and its gold (unless `reference` is ""), and these keys of the item's `meta`."""

    def inputs(item: Item, completion: str) -> dict[str, Any]:
        gold = {reference: item.gold} if reference else {}
        return {prediction: completion, **gold, **{key: item.meta[key] for key in keys}}

    return inputs


def _mathvista(item: Item, completion: str) -> dict[str, Any]:
    keys = ("choices", "question_type", "answer_type", "precision")
    extraction = mathvista_quick_extract(completion)
    return {"extraction": extraction, "answer": item.gold, **{key: item.meta[key] for key in keys}}


def _one_row(item: Item, completion: str) -> dict[str, Any]:
    length = item.meta["context_length"]
    return {"task": item.group, "rows": [{"id": item.id, "le": length, "pr": completion, "an": item.gold}]}


INPUTS: dict[str, Callable[[Item, str], dict[str, Any]]] = {
    "anls": _references,
    "exact_match_accuracy": _pair("prediction", "annotation"),
    "gqa_accuracy_single": _pair("prediction", "answer"),
    "mathvista_normalize": _mathvista,
    "mcq_letter_extract": _from_meta("response", ""),
    "judge_grade": lambda item, completion: {"reply": completion},
    "longvqa_end_to_end": _one_row,
    "milebench_contains": _pair("pred_response", "gt_response"),
    "milebench_multichoice": _options,
    "milebench_needle": _pair("pred_response", "gt_response"),
    "milebench_rouge_l": _pair("pred_response", "gt_response"),
    "mme_reply": _from_meta("response", ""),
    "mmmu_item": _from_meta("response", "ground_truth", "question_type", "options"),
    "mmniah_choice": lambda item, completion: {
        "response": completion,
        "answer": item.gold,
        "n_choices": item.meta["n_choices"],
    },
    "mmniah_counting": _pair("response", "answer"),
    "mmniah_forced": _pair("response", "answer"),
    "mmniah_text": _pair("response", "answer"),
    "mvbench_check_ans": _pair("pred", "gt"),
    "ocrbench_lmms": _from_meta("pred", "answer", "dataset"),
    "option_post_process": lambda item, completion: {"pred": completion, "option": item.meta["options"]},
    "pope_parse": _from_meta("text", ""),
    "realworldqa_lmms": _pair("pred", "answer"),
    "refcoco_convllava": _from_meta("answer", "gt_bbox", "hw"),
    "refcoco_internvl": _from_meta("answer", "gt_bbox", "hw"),
    "relaxed_accuracy": _pair("prediction", "annotation"),
    "seed_letter": _from_meta("prediction", ""),
    "vlmevalkit_can_infer": lambda item, completion: {"answer": completion, "choices": item.meta["options"]},
    "vqa_accuracy": _references,
    "word_match": _pair("prediction", "annotation"),
}
"""Scorer name -> the inputs it takes from an item and its reply. Options are `meta["options"]` (letter -> text)."""

READERS = {
    "mcq_letter_extract",
    "mme_reply",
    "option_post_process",
    "pope_parse",
    "seed_letter",
    "vlmevalkit_can_infer",
}
"""Scorers that say what was read; it is right when it equals the gold."""


JUDGED = {"judge_grade": "reply", "mathvista_normalize": "extraction"}
"""Scorer name -> the input that a judge's words take the place of. Of `READERS` they take the place altogether."""


def score_item(
    benchmark: Benchmark,
    item: Item,
    completion: str | None,
    compat: Compat = "upstream",
    verdict: Verdict | None = None,
) -> Score:
    """The score of one reply. `completion` None means that the model did not answer: never scored.

    `verdict`: what a judge made of the reply, for tables with a `judge`. A reply that only a judge can grade, or that
    the judge failed on, has no score.

    A published scorer that stops with an error on this reply counts it as wrong here, and says so. An empty reply that
    a published rule takes for right is kept in upstream mode, is named in `why`, and is wrong in fixed mode.

    Raises:
        UnknownName: the table names no known scorer.
    """
    if completion is None:
        return Score("", None, "no answer")
    if item.gold is None:
        return Score(completion.strip(), None, "not scored: the answers are with a server")
    name = benchmark.scorer_of(item.group)
    if name not in INPUTS:
        raise UnknownName("scorer", name, INPUTS)
    if (verdict and verdict.kind in ENDED) or (name == "judge_grade" and (not verdict or verdict.kind != "judged")):
        return Score("", None, verdict.why if verdict else "not judged")
    if compat == "fixed" and not completion.strip():
        return Score("", 0.0, "empty reply")
    try:
        judged = verdict.text if verdict and verdict.kind == "judged" else None
        inputs = INPUTS[name](item, completion)
        if judged is not None and name in JUDGED:
            inputs[JUDGED[name]] = judged
        reads = judged is not None and name in READERS
        result: Any = judged if reads else SCORERS[name](**inputs, compat=compat)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        if compat == "fixed":
            raise
        return Score("", 0.0, f"wrong: the published scorer stops with {type(error).__name__}: {error}")
    extracted = completion.strip()
    if name == "longvqa_end_to_end":
        extracted, value = longvqa_rectify(item.group, completion, compat=compat), sum(result.values()) / 100
    elif isinstance(result, dict):
        extracted = str(result.get("extracted", result.get("prediction", extracted)) or "")
        value = float(next(result[key] for key in ("score", "correct", "true_false") if key in result))
    elif name in READERS:
        extracted, value = str(result or ""), float(result == item.gold)
    else:
        value = float(result)
    word = "right" if value == 1 else "wrong" if value == 0 else f"{value:.3f}"
    by = f"{name} ({verdict.why})" if verdict else name
    empty = ", although the reply is empty" if value and not completion.strip() else ""
    return Score(extracted, value, f"{word} by {by}: read {extracted!r:.80}, expected {item.gold!r:.80}{empty}")


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
