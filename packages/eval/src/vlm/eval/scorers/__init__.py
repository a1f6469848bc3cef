"""Scorers by name. `SCORERS[name](**inputs, compat="upstream")` is what the published scorer returns, faults included;
`compat="fixed"` corrects the faults named in each docstring. One module per family of benchmarks."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from vlm.eval.loaders.haystack import mmniah_prompt
from vlm.eval.loaders.milebench import milebench_prompt
from vlm.eval.scorers.milebench import (
    milebench_contains,
    milebench_multichoice,
    milebench_needle,
    milebench_process,
    milebench_rouge_l,
)
from vlm.eval.scorers.mmniah import mmniah_aggregate_v2pe, mmniah_choice, mmniah_counting, mmniah_text
from vlm.eval.scorers.text import Compat
from vlm.eval.scorers.vqa import (
    anls,
    evalai_normalizer,
    exact_match_accuracy,
    relaxed_accuracy,
    vqa_accuracy,
    word_match,
)
from vlm.eval.scorers.yesno import pope_metrics, pope_parse


def _mmniah_prompt(item: dict[str, Any], *, compat: Compat = "upstream") -> dict[str, Any]:
    marks = item["context"].count("<image>") + item["question"].count("<image>")
    both = item["meta"]["choices"] is not None and item["meta"]["choices_image_path"] is not None
    if marks != len(item["images_list"]) or both:
        raise AssertionError("marks and images differ in number, or two kinds of options (as published)")
    question, images = mmniah_prompt(item)
    return {"context": item["context"], "images_list": images, "question": question, "answer": item["answer"]}


def _milebench_prompt(record: dict[str, Any], *, compat: Compat = "upstream", **settings: Any) -> dict[str, Any]:
    question, images = milebench_prompt(record, **settings)
    root = PurePosixPath("ROOT/images")
    return {
        "question": question,
        "images": [str(root / name) for name in images],
        "response": str(record["response"]),
    }


SCORERS: dict[str, Callable[..., Any]] = {
    "anls": anls,
    "evalai_normalizer": evalai_normalizer,
    "exact_match_accuracy": exact_match_accuracy,
    "milebench_contains": milebench_contains,
    "milebench_gpr_style": milebench_multichoice,
    "milebench_multichoice": milebench_multichoice,
    "milebench_needle": milebench_needle,
    "milebench_process": milebench_process,
    "milebench_prompt": _milebench_prompt,
    "milebench_rouge_l": milebench_rouge_l,
    "mmniah_aggregate_v2pe": mmniah_aggregate_v2pe,
    "mmniah_choice": mmniah_choice,
    "mmniah_counting": mmniah_counting,
    "mmniah_prompt": _mmniah_prompt,
    "mmniah_text": mmniah_text,
    "pope_metrics": pope_metrics,
    "pope_parse": pope_parse,
    "relaxed_accuracy": relaxed_accuracy,
    "vqa_accuracy": vqa_accuracy,
    "word_match": word_match,
}
