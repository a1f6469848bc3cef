"""Published scorers that stop with an exception, and what ours do. `upstream` mode raises the same exception (the
runner holds every recorded one against this table); `fixed` mode never raises on a reply; `score_item` counts a reply
on which the published scorer stops as wrong and says so in `why`."""

RAISES: dict[str, dict[str, str]] = {
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
    "pope_metrics": {"ZeroDivisionError": "no positive reply or label: the ratio is None in fixed mode, F1 has a note"},
    "vqa_accuracy": {"AssertionError": "other than ten references: any number is accepted in fixed mode"},
}
"""Scorer -> exception -> our decision."""
