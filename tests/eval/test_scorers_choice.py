"""Scorers of the choice, yes/no, box and open-question benchmarks: where `fixed` differs, and odd replies."""

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.core.errors import DataError
from vlm.eval.scorers import SCORERS
from vlm.eval.scorers.choice import read_letter

CAT_DOG = {"A": "cat", "B": "dog", "C": "a dog house"}
TENS = {"A": "10", "B": "100"}
THIRDS = {"choices": ["3/11", "8/11"], "question_type": "multi_choice", "answer_type": "text", "precision": None}
BOX = {"gt_bbox": [64.0, 48.0, 320.0, 240.0], "hw": [480, 640]}
MMMU = {"index2ans": {"A": "red fox", "B": "blue whale"}, "all_choices": ["A", "B"]}


def both(name: str, **inputs: Any) -> tuple[Any, Any]:
    """(upstream, fixed); an exception as its name."""
    found = []
    for compat in ("upstream", "fixed"):
        try:
            found.append(SCORERS[name](**inputs, compat=compat))
        except (ArithmeticError, AssertionError, LookupError, ValueError, DataError) as error:
            found.append(type(error).__name__)
    return found[0], found[1]


# where the modes differ, one fault each ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inputs", "upstream", "fixed"),
    [
        ("option_post_process", {"pred": "Because", "option": CAT_DOG}, "B", ""),
        ("option_post_process", {"pred": "100", "option": TENS}, "A", "B"),
        ("option_post_process", {"pred": "(B)", "option": CAT_DOG}, "(B)", "B"),
        ("option_post_process", {"pred": " ", "option": CAT_DOG}, "IndexError", ""),
        ("scienceqa_match", {"pred": "", "choices": ["cat", "dog"], "answer": 0}, "IndexError", 0),
        ("scienceqa_match", {"pred": "The answer is B", "choices": ["cat", "dog"], "answer": 1}, 0, 1),
        ("mmvp_pair_accuracy", {"answers": ["(A)", "B."], "gts": ["A", "B"]}, 0, 1),
        ("mcq_letter_extract", {"response": "Because of the light"}, "B", ""),
        ("mcq_letter_extract", {"response": "a"}, "", "A"),
        ("realworldqa_lmms", {"pred": "After all", "answer": "A"}, 1, 0),
        ("realworldqa_lmms", {"pred": "", "answer": ""}, 1, 0),
        ("mme_parse", {"pred_ans": "snow"}, "no", "other"),
        ("mme_parse", {"pred_ans": "eyes"}, "yes", "other"),
        ("mme_parse", {"pred_ans": "The answer is yes"}, "other", "yes"),
        ("mme_post_processing", {"response": "Yes\nindeed"}, "yesindeed", "yes indeed"),
        ("mme_reply", {"response": "It is\n不是"}, "other", "no"),
        ("mmmu_multi_choice_parse", {"response": "red fox", **MMMU}, "__RANDOM__", "A"),
        ("mmmu_multi_choice_parse", {"response": "no idea", **MMMU}, "__RANDOM__", ""),
        ("mvbench_check_ans", {"pred": "", "gt": "(A) cat"}, True, False),
        ("mvbench_check_ans", {"pred": ".", "gt": "(A) cat"}, True, False),
        ("mvbench_check_ans", {"pred": " (B)", "gt": "(A) cat"}, True, False),
        ("mvbench_check_ans", {"pred": "option A", "gt": "(A) cat"}, False, True),
        ("mvbench_check_ans", {"pred": "Cat.", "gt": "(A) cat"}, False, True),
        ("mvbench_check_ans", {"pred": "(A)", "gt": "(A)"}, "IndexError", True),
        ("ocrbench_lmms", {"pred": "abc", "answer": [""], "dataset": "DocVQA"}, 1, 0),
        ("gqa_accuracy_single", {"prediction": "Yes. ", "answer": "yes"}, 0, 1),
        ("gqa_accuracy_single", {"prediction": "...", "answer": ""}, 1, 0),
        ("gqa_convert", {"answer": " Left.\n"}, " left.\n", "left"),
    ],
)
def test_fixed_corrects_the_published_fault(name: str, inputs: dict, upstream: Any, fixed: Any) -> None:
    assert both(name, **inputs) == (upstream, fixed)


def test_a_small_letter_is_a_choice_and_nothing_is_none_in_mathvista() -> None:
    small = both("mathvista_normalize", extraction="b", answer="8/11", **THIRDS)
    assert [found["prediction"] for found in small] == ["3/11", "8/11"]
    empty = both("mathvista_normalize", extraction=" ", answer="3/11", **THIRDS)
    assert [found["true_false"] for found in empty] == [True, False]


def test_gqa_converts_replies_in_fixed_mode() -> None:
    items = [{"answer": "yes", "prediction": "Yes. ", "structural": "verify"}]
    assert [found["binary"] for found in both("gqa_official", items=items)] == [0, 100]
    assert SCORERS["gqa_official"]([]) == {"binary": 0, "open": 0, "accuracy": 0}


def test_seed_reads_letters_and_leaves_empty_shares_open_in_fixed_mode() -> None:
    anno = {
        "questions": [{"question_id": "1", "question_type_id": 1, "answer": "C"}],
        "question_type": {"Scene Understanding": 1, "Action Recognition": 10},
    }
    rows = [{"question_id": 1, "prediction": "(C)"}]
    upstream, fixed = both("seed_calculation", preds=rows, anno=anno)
    assert upstream == "ZeroDivisionError"
    assert fixed["Image accuracy"] == fixed["Total accuracy"] == 100
    assert fixed["Video accuracy"] is fixed["Data type Action Recognition"] is None
    with pytest.raises(IndexError):
        SCORERS["seed_calculation"]([{"question_id": 1, "prediction": ""}], anno)


def test_mme_counts_only_given_tasks_in_fixed_mode() -> None:
    rows = [["1.jpg", "q", "Yes", "snow"], ["1.jpg", "q", "No", "no"]]
    upstream, fixed = both("mme_score", files={"OCR": rows})
    assert upstream == {"perception_total": 1850, "OCR": 50, "cognition_total": 800}
    assert fixed == {"perception_total": 50, "OCR": 50, "cognition_total": 0}
    silent = [[*row[:3], "maybe"] for row in rows]
    assert both("mme_score", files={"OCR": silent})[0] == "ValueError"
    assert both("mme_score", files={"OCR": silent})[1]["OCR"] == 0
    assert both("mme_score", files={"OCR": rows[:1]}) == ("AssertionError", "AssertionError")
    for files in ({"juggling": rows}, {"OCR": []}, {"OCR": [row[:3] for row in rows]}):
        with pytest.raises(DataError):
            SCORERS["mme_score"](files, compat="fixed")


def test_a_line_that_does_not_split_is_skipped_by_the_published_mme_script_only() -> None:
    rows = [["1.jpg", "q", "Yes", "yes"], ["1.jpg", "q", "No", "no\tno"]]
    assert SCORERS["mme_score"]({"OCR": rows})["OCR"] == 100  # one of one right, no image with two


def test_mmmu_counts_missing_replies_as_wrong_in_fixed_mode() -> None:
    gold = {"question_type": "multiple-choice", "ground_truth": "A"}
    answers = {f"validation_Art_Theory_{i}": gold for i in range(4)}
    upstream, fixed = both("mmmu_main_eval", outputs={"validation_Art_Theory_1": "(A)"}, answers=answers)
    assert upstream["Overall"] == {"num": 1, "acc": 0}
    assert fixed["Art_Theory"] == fixed["Overall"] == {"num": 4, "acc": 0.25}
    unknown = {"validation_Art_Theory_9": "A"}
    assert both("mmmu_main_eval", outputs=unknown, answers=answers) == ("KeyError", "KeyError")


def test_rows_that_do_not_pair_up_are_refused_in_fixed_mode() -> None:
    assert SCORERS["mmvp_pair_accuracy"](["A", "B", "A"], ["A", "B", "B"]) == 1  # the third row is dropped
    with pytest.raises(DataError, match="3 answers"):
        SCORERS["mmvp_pair_accuracy"](["A", "B", "A"], ["A", "B", "B"], compat="fixed")
    assert both("mmvp_pair_accuracy", answers=["A"], gts=["A"]) == ("ZeroDivisionError", "DataError")


def test_an_answer_that_is_no_candidate_is_refused_in_fixed_mode() -> None:
    data = {"question": "q", "candidates": ["x", "y"], "answer": "z"}
    assert SCORERS["mvbench_qa_template"](data)["answer"] == "(@) z"
    with pytest.raises(DataError, match="'z'"):
        SCORERS["mvbench_qa_template"](data, compat="fixed")


def test_boxes_that_are_no_areas_overlap_nothing_in_fixed_mode() -> None:
    for name in ("refcoco_internvl", "refcoco_convllava"):
        upstream, fixed = both(name, answer="[nan, 0, 1, 1]", **BOX)
        assert math.isnan(upstream["iou"]) and fixed == {"iou": 0, "correct": 0} and upstream["correct"] == 0
    flat = {"gt_bbox": [0, 0, 0, 0], "hw": [10, 10], "answer": ""}
    assert both("refcoco_lmms_rec", **flat)[0] == "ZeroDivisionError"
    assert both("refcoco_lmms_rec", **flat)[1]["iou"] == 0


# odd inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("D", CAT_DOG, ""),  # not an option
        ("C", {"A": "x", "C": "y"}, "C"),  # a gap in the letters
        ("B", {"A": "x", "C": "y"}, ""),
        ("b", CAT_DOG, "B"),
        ("**B**", CAT_DOG, "B"),
        ("A cat sat there", {"A": "dog", "B": "cat"}, "B"),  # the article is no letter
        ("Ｂ", CAT_DOG, "B"),
        ("", {}, ""),
    ],
)
def test_our_reading_of_a_reply(reply: str, options: dict[str, str], letter: str) -> None:
    assert read_letter(reply, options) == letter


def test_numbers_texts_and_odd_spellings_of_open_answers() -> None:
    parse, right = SCORERS["mmmu_open_parse"], SCORERS["mmmu_open_eval"]
    assert parse("") == [""] and parse("so ") == ["so"]
    assert parse("the answer is x = 5")[0] == 5  # `=` is a cue in the last line
    assert parse("a = 1\nb") == ["a = 1\nb", 1.0][::-1]  # but not in another
    assert math.isnan(parse("nan")[0]) and parse("inf") == [math.inf]
    assert parse("1_000") == [0.0, 1000.0] and parse("１２") == [12.0]
    assert right("x", "") is False and right([], "x") is False and right(["3", "x"], "3.001") is True


def test_option_texts_decide_only_when_alone_in_a_short_reply() -> None:
    infer = SCORERS["vlmevalkit_can_infer"]
    assert infer("cat", CAT_DOG) == "A" and infer("cat or dog", CAT_DOG) is False
    assert infer("cat " * 20, CAT_DOG) is False
    assert infer("A is what I would say here", {"A": "x", "B": "y"}) is False  # too far from the end
    assert infer("The answer is cat", {"A": "x", "C": "y"}) == "C"  # the first letter after the cue, as published
    assert infer("I can't process this file.", CAT_DOG) == "Z" and infer("Z", CAT_DOG) == "Z"
    assert infer(None, CAT_DOG) is False and infer(12, {"A": 12}) == "A"


def test_circular_groups_leave_absent_options_out() -> None:
    row = {
        "index": 1,
        "GT": "A",
        "answer": "A",
        "prediction": "none at all",
        "A": "x1",
        "B": "y1",
        "C": math.nan,
        "D": None,
    }
    assert SCORERS["mmbench_circular_prefetch"]([row]) is None
    assert SCORERS["mmbench_circular_prefetch"]([row | {"prediction": "A"}]) == 1
    assert SCORERS["mmbench_circular_prefetch"]([row | {"prediction": "B"}, row]) == 0
    assert SCORERS["mmbench_static_lmms"]([row | {"prediction": "D"}]) == {"overall": 0}
    assert SCORERS["mmbench_static_lmms"]([row | {"prediction": "A"}, row | {"index": 2}]) == {"overall": 0.5}
    assert math.isnan(SCORERS["mmbench_static_lmms"]([row | {"index": 1_000_001}])["overall"])


def test_mathvista_forms() -> None:
    def form(extraction: Any, answer_type: str, precision: float | None = None) -> Any:
        given = {"question_type": "free_form", "choices": None, "answer": "x", "precision": precision}
        return SCORERS["mathvista_normalize"](extraction, answer_type=answer_type, **given)["prediction"]

    assert form("1e400", "integer") is form("inf", "integer") is form("٣x", "integer") is form(None, "float", 1) is None
    assert form("-0.4", "integer") == "0" and form("2.675", "float", 2.0) == "2.67" and form("3", "float") is None
    assert form([1, 2], "list") == "[1, 2]" and form("any", "text") == "any"
    with pytest.raises(TypeError):
        SCORERS["mathvista_normalize"]("A", answer="x", **THIRDS | {"choices": None})


@given(
    first=st.integers(0, 5),
    length=st.integers(1, 3000),
    segments=st.integers(1, 32),
    bound=st.none() | st.tuples(st.floats(0, 50), st.floats(0, 50)).map(sorted),
)
def test_frames_are_those_of_the_formula(first: int, length: int, segments: int, bound: list[float] | None) -> None:
    start, end = bound or (-100_000, 100_000)
    begin, last = max(first, round(start * 25.0)), min(round(end * 25.0), first + length)
    step = (last - begin) / segments
    expected = [int(begin + step / 2 + round(step * k)) for k in range(segments)]
    assert SCORERS["mvbench_frame_indices"](bound, 25.0, first + length, first, segments) == expected


REPLIES: dict[str, dict[str, Any]] = {
    "option_post_process": {"option": CAT_DOG},
    "scienceqa_match": {"choices": ["cat", "dog"], "answer": 1},
    "mcq_letter_extract": {},
    "realworldqa_lmms": {"answer": "A"},
    "mme_parse": {},
    "mme_post_processing": {},
    "mmmu_multi_choice_parse": MMMU,
    "mmmu_open_parse": {},
    "mmmu_open_eval": {"gold": ["3", "cat"]},
    "mvbench_check_ans": {"gt": "(A) cat"},
    "vlmevalkit_can_infer": {"choices": CAT_DOG},
    "mathvista_normalize": {"answer": "8/11", **THIRDS},
    "mathvista_quick_extract": {},
    "ocrbench_lmms": {"answer": ["cat"], "dataset": "IIIT5K"},
    "gqa_convert": {},
    "gqa_accuracy_single": {"answer": "cat"},
    "refcoco_internvl": BOX,
    "refcoco_convllava": BOX,
    "refcoco_lmms_rec": BOX,
}
ARGUMENT = {
    **dict.fromkeys(["mcq_letter_extract", "mmmu_multi_choice_parse", "mmmu_open_parse", "mmmu_open_eval"], "response"),
    **dict.fromkeys(["refcoco_internvl", "refcoco_convllava", "refcoco_lmms_rec", "vlmevalkit_can_infer"], "answer"),
    **{"mme_parse": "pred_ans", "mme_post_processing": "response", "mathvista_normalize": "extraction"},
    **{"mathvista_quick_extract": "text", "gqa_convert": "answer", "gqa_accuracy_single": "prediction"},
}


@given(reply=st.text() | st.text(alphabet="ABab()[]., :0123456789-\n*=eyno猫", max_size=60))
def test_no_reply_stops_a_fixed_scorer(reply: str) -> None:
    for name, given_inputs in REPLIES.items():
        inputs = {ARGUMENT.get(name, "pred"): reply, **given_inputs}
        kept = copy.deepcopy(inputs)
        SCORERS[name](**inputs, compat="fixed")
        assert inputs == kept, f"{name} changed its inputs"


@pytest.mark.parametrize("reply", ["", " ", "\n", "."])
def test_an_empty_reply_is_never_right_in_fixed_mode(reply: str) -> None:
    for name, given_inputs in REPLIES.items():
        found = SCORERS[name](**{ARGUMENT.get(name, "pred"): reply, **given_inputs}, compat="fixed")
        score = found.get("correct", found.get("acc05", found.get("true_false"))) if isinstance(found, dict) else found
        assert not score or isinstance(score, str | list), f"{name}: {found}"


@pytest.mark.parametrize("unit", ["[", "[1,", "A ", "is ", "(B) ", "1,000 ", "\n"])
def test_long_replies_are_read_in_reasonable_time(unit: str) -> None:
    reply = unit * (4000 // len(unit))
    start = time.monotonic()
    for name, given_inputs in REPLIES.items():
        both(name, **{ARGUMENT.get(name, "pred"): reply, **given_inputs})
    assert time.monotonic() - start < 5


def test_the_inputs_above_are_those_of_the_fixtures() -> None:
    cases = json.loads((Path(__file__).parents[1] / "golden" / "data" / "scorers.json").read_text(encoding="utf-8"))
    for name in REPLIES:
        assert {*REPLIES[name], ARGUMENT.get(name, "pred")} == cases[name][0]["inputs"].keys()
