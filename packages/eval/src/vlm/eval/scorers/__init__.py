"""Scorers by name. `SCORERS[name](**inputs, compat="upstream")` is what the published scorer returns, faults included;
`compat="fixed"` corrects the faults named in each docstring. One module per family of benchmarks."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from vlm.core.sample.tiling import plan_tiles
from vlm.eval.loaders.haystack import mmniah_prompt
from vlm.eval.loaders.milebench import milebench_prompt
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.choice import (
    mcq_letter_extract,
    mmvp_pair_accuracy,
    option_post_process,
    realworldqa_lmms,
    scienceqa_match,
    seed_calculation,
    seed_letter,
)
from vlm.eval.scorers.due import due_acc, due_anls, due_f1, due_wtq
from vlm.eval.scorers.gqa import gqa_accuracy_single, gqa_convert, gqa_official
from vlm.eval.scorers.grounding import refcoco_convllava, refcoco_internvl, refcoco_lmms_rec
from vlm.eval.scorers.judged import judge_grade
from vlm.eval.scorers.longvqa import longvqa_end_to_end, longvqa_rectify, longvqa_textvqa
from vlm.eval.scorers.mathvista import mathvista_normalize, mathvista_quick_extract
from vlm.eval.scorers.milebench import (
    milebench_contains,
    milebench_multichoice,
    milebench_needle,
    milebench_process,
    milebench_rouge_l,
)
from vlm.eval.scorers.mmbench import mmbench_circular_prefetch, mmbench_static_lmms, vlmevalkit_can_infer
from vlm.eval.scorers.mme import mme_parse, mme_post_processing, mme_reply, mme_score
from vlm.eval.scorers.mmmu import (
    mmmu_item,
    mmmu_main_eval,
    mmmu_multi_choice_parse,
    mmmu_open_eval,
    mmmu_open_parse,
)
from vlm.eval.scorers.mmniah import (
    mmniah_aggregate_v2pe,
    mmniah_choice,
    mmniah_counting,
    mmniah_forced,
    mmniah_text,
)
from vlm.eval.scorers.ocrbench import ocrbench_lmms
from vlm.eval.scorers.owl import owl_anls, owl_bleu4, owl_cacc, owl_eacc, owl_iou, owl_racc
from vlm.eval.scorers.video import mvbench_check_ans, mvbench_frame_indices, mvbench_qa_template
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


def _dynamic_tiles(
    width: int, height: int, max_num: int, use_thumbnail: bool, *, compat: Compat = "upstream"
) -> dict[str, Any]:
    plan = plan_tiles(width, height, max_tiles=max_num, thumbnail=use_thumbnail)
    return {"grid": list(plan.grid), "tiles": plan.n_tiles, "boxes": [list(box) for box in plan.boxes]}


SCORERS: dict[str, Callable[..., Any]] = {
    "anls": anls,
    "due_acc": due_acc,
    "due_anls": due_anls,
    "due_f1": due_f1,
    "due_wtq": due_wtq,
    "dynamic_tiles": _dynamic_tiles,
    "evalai_normalizer": evalai_normalizer,
    "exact_match_accuracy": exact_match_accuracy,
    "gqa_accuracy_single": gqa_accuracy_single,
    "gqa_convert": gqa_convert,
    "gqa_official": gqa_official,
    "judge_grade": judge_grade,
    "longvqa_end_to_end": longvqa_end_to_end,
    "longvqa_rectify": longvqa_rectify,
    "longvqa_textvqa": longvqa_textvqa,
    "mathvista_normalize": mathvista_normalize,
    "mathvista_quick_extract": mathvista_quick_extract,
    "mcq_letter_extract": mcq_letter_extract,
    "milebench_contains": milebench_contains,
    "milebench_gpr_style": milebench_multichoice,
    "milebench_multichoice": milebench_multichoice,
    "milebench_needle": milebench_needle,
    "milebench_process": milebench_process,
    "milebench_prompt": _milebench_prompt,
    "milebench_rouge_l": milebench_rouge_l,
    "mmbench_circular_prefetch": mmbench_circular_prefetch,
    "mmbench_static_lmms": mmbench_static_lmms,
    "mme_parse": mme_parse,
    "mme_post_processing": mme_post_processing,
    "mme_reply": mme_reply,
    "mme_score": mme_score,
    "mmmu_item": mmmu_item,
    "mmmu_main_eval": mmmu_main_eval,
    "mmmu_multi_choice_parse": mmmu_multi_choice_parse,
    "mmmu_open_eval": mmmu_open_eval,
    "mmmu_open_parse": mmmu_open_parse,
    "mmniah_aggregate_v2pe": mmniah_aggregate_v2pe,
    "mmniah_choice": mmniah_choice,
    "mmniah_counting": mmniah_counting,
    "mmniah_forced": mmniah_forced,
    "mmniah_prompt": _mmniah_prompt,
    "mmniah_text": mmniah_text,
    "mmvp_pair_accuracy": mmvp_pair_accuracy,
    "mvbench_check_ans": mvbench_check_ans,
    "mvbench_frame_indices": mvbench_frame_indices,
    "mvbench_qa_template": mvbench_qa_template,
    "ocrbench_lmms": ocrbench_lmms,
    "option_post_process": option_post_process,
    "owl_anls": owl_anls,
    "owl_bleu4": owl_bleu4,
    "owl_cacc": owl_cacc,
    "owl_eacc": owl_eacc,
    "owl_iou": owl_iou,
    "owl_racc": owl_racc,
    "pope_metrics": pope_metrics,
    "pope_parse": pope_parse,
    "realworldqa_lmms": realworldqa_lmms,
    "refcoco_convllava": refcoco_convllava,
    "refcoco_internvl": refcoco_internvl,
    "refcoco_lmms_rec": refcoco_lmms_rec,
    "relaxed_accuracy": relaxed_accuracy,
    "scienceqa_match": scienceqa_match,
    "seed_calculation": seed_calculation,
    "seed_letter": seed_letter,
    "vlmevalkit_can_infer": vlmevalkit_can_infer,
    "vqa_accuracy": vqa_accuracy,
    "word_match": word_match,
}
