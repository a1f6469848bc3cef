"""Published scorers that stop with an exception, and what ours do.

`upstream` mode raises the same exception: every recorded one must be in this table. `fixed` mode never raises on a
reply. `score_item` counts a reply on which the published scorer stops as wrong, and `why` says so.
"""

RAISES: dict[str, dict[str, str]] = {
    "due_acc": {"AssertionError": "a row without id, reply or reference: kept"},
    "due_anls": {
        "AssertionError": "several replies in a row: the best of them in fixed mode",
        "ValueError": "no reference: the loader refuses such a row",
    },
    "longvqa_end_to_end": {
        "AssertionError": "a BLEU row without reference: the loader refuses such a row",
        "AttributeError": "a reply or reference that is no text: fixed mode takes lists of references, and no reply",
        "ZeroDivisionError": "reply and reference both clean to nothing (ANLS), or no rows: wrong, None in fixed mode",
    },
    "longvqa_textvqa": {
        "AssertionError": "other than one or ten references: any number is accepted in fixed mode",
        "ZeroDivisionError": "no rows: None in fixed mode",
    },
    "mathvista_normalize": {
        "TypeError": "a question to choose from without choices: the loader refuses such a row",
        "ValueError": "an empty list of choices: the loader refuses such a row",
    },
    "milebench_gpr_style": {"AssertionError": "the answer is not among the options: the loader refuses such a row"},
    "milebench_multichoice": {"AssertionError": "the answer is not among the options: the loader refuses such a row"},
    "milebench_rouge_l": {
        "AssertionError": "a reference that cleans to nothing: 0 in fixed mode",
        "ValueError": "a text without a sentence: 0 in fixed mode",
    },
    "mmniah_aggregate_v2pe": {"IndexError": "a depth outside 0..1: the loader refuses such a row"},
    "mmniah_choice": {"ValueError": "a digit that int() does not read: wrong in fixed mode"},
    "mmniah_counting": {"ZeroDivisionError": "an empty reference: the loader refuses such a row"},
    "mmniah_prompt": {"AssertionError": "marks and images differ in number: the loader refuses such a row"},
    "mmbench_static_lmms": {"KeyError": "a row without one of its columns: the loader refuses such a row"},
    "mme_score": {
        "AssertionError": "a row without its partner: the loader refuses such a set",
        "ValueError": "no reply of a task is yes or no: every one is wrong in fixed mode",
    },
    "mmmu_main_eval": {"KeyError": "a reply to a question that is not in the set: the same in fixed mode"},
    "mmvp_pair_accuracy": {"ZeroDivisionError": "fewer than two rows: refused in fixed mode"},
    "mvbench_check_ans": {"IndexError": "a reference without a text: the loader refuses such a row"},
    "option_post_process": {"IndexError": "an empty reply: wrong in fixed mode"},
    "owl_anls": {"ZeroDivisionError": "reply and reference both empty, or no rows: wrong, None in fixed mode"},
    "owl_bleu4": {"AssertionError": "a row without reference: the loader refuses such a row"},
    "owl_cacc": {"ZeroDivisionError": "no rows: None in fixed mode"},
    "owl_eacc": {"ZeroDivisionError": "no rows: None in fixed mode"},
    "owl_iou": {"ZeroDivisionError": "turned boxes whose areas cancel: they overlap nothing in fixed mode"},
    "owl_racc": {"ZeroDivisionError": "no rows: None in fixed mode"},
    "pope_metrics": {"ZeroDivisionError": "no positive reply or label: the ratio is None in fixed mode, F1 has a note"},
    "refcoco_lmms_rec": {"ZeroDivisionError": "areas that cancel: they overlap nothing in fixed mode"},
    "scienceqa_match": {"IndexError": "an empty reply: wrong in fixed mode"},
    "seed_calculation": {
        "IndexError": "an empty reply: wrong in fixed mode",
        "KeyError": "a reply to a question that is not in the annotations: the same in fixed mode",
        "ZeroDivisionError": "a share of no rows: None in fixed mode",
    },
    "vlmevalkit_can_infer": {"AssertionError": "an option that is no capital letter: the loader refuses such a row"},
    "vqa_accuracy": {"AssertionError": "other than ten references: any number is accepted in fixed mode"},
}
"""Scorer -> exception -> our decision."""
