"""Choice, yes/no and box benchmarks through score_item and their aggregates, in which rows count together."""

from typing import Any

import pytest

from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.loaders import Item
from vlm.eval.run.score import aggregate, score_item
from vlm.eval.scorers.mme import TASKS

OPTIONS = {"A": "cat", "B": "dog"}


def table(scorer: str, how: str = "mean") -> Benchmark:
    return load_benchmark("easyVQA").model_copy(update={"scorer": scorer, "aggregate": how, "options": {}})


def row(id_: str, score: float | None, group: str = "", **meta: Any) -> dict[str, Any]:
    """A row of results.jsonl; without a score it ran out of memory."""
    outcome = "oom" if score is None else "ok"
    return {"id": id_, "group": group, "outcome": outcome, "score": score, "strict_score": score, "meta": meta}


def values(how: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {metric.name: metric for metric in aggregate(table("anls", how), rows)}


@pytest.mark.parametrize(
    ("scorer", "gold", "meta", "reply", "read", "right"),
    [
        ("option_post_process", "B", {"options": OPTIONS}, "B. dog", "B", 1),
        ("vlmevalkit_can_infer", "B", {"options": OPTIONS}, "cat or dog", "", 0),
        ("mcq_letter_extract", "C", {}, "The answer is C.", "C", 1),
        ("seed_letter", "A", {}, "A. cat", "A", 1),
        ("mme_reply", "no", {}, "不是", "no", 1),
        ("mmmu_item", "B", {"question_type": "multiple-choice", "options": OPTIONS}, "dog", "B", 1),
        ("mmmu_item", ["3", "x"], {"question_type": "open", "options": {}}, "It is 3.0", "It is 3.0", 1),
        ("gqa_accuracy_single", "yes", {}, "Yes.", "Yes.", 1),
        ("mvbench_check_ans", "(A) cat", {}, "(B)", "(B)", 0),
        ("ocrbench_lmms", ["centre"], {"dataset": "IIIT5K"}, "CENTRE", "CENTRE", 1),
        ("realworldqa_lmms", "Two", {}, "two.", "two.", 1),
        ("refcoco_internvl", [64, 48, 320, 240], {"hw": [480, 640]}, "[[100,100,500,500]]", "[[100,100,500,500]]", 1),
        (
            "mathvista_normalize",
            "8/11",
            {"choices": ["3/11", "8/11"], "question_type": "multi_choice", "answer_type": "text", "precision": None},
            "Step by step. Answer: (B)",
            "8/11",
            1,
        ),
    ],
)
def test_one_reply(scorer: str, gold: Any, meta: dict, reply: str, read: str, right: int) -> None:
    for compat in ("upstream", "fixed"):
        found = score_item(table(scorer), Item("1", [], gold, "", meta), reply, compat)
        assert (found.extracted, found.value) == (read, right) and scorer in found.why


def test_an_empty_reply_that_stops_a_published_scorer_is_wrong_and_says_so() -> None:
    item = Item("1", [], "A", "", {"options": OPTIONS})
    for scorer in ("option_post_process", "seed_letter"):
        found = score_item(table(scorer), item, "")
        assert found.value == 0 and "IndexError" in found.why
    empty = score_item(table("mvbench_check_ans"), Item("1", [], "(A) cat", "", {}), "")
    assert empty.value == 1 and "empty" in empty.why  # as published


def test_a_set_counts_only_when_all_of_it_is_right_and_was_answered() -> None:
    rows = [row("1", 1, set="x"), row("2", 1, set="x"), row("3", 1, set="y"), row("4", 0, set="y")]
    found = values("whole_sets", rows)
    assert (found["accuracy"].value, found["rows"].value) == (50, 75)
    found = values("whole_sets", [*rows, row("5", 1, set="z"), row("6", None, set="z")])
    assert found["accuracy"].value == 50 and "1 sets" in found["accuracy"].note
    assert values("whole_sets", [row("1", None, set="x")])["accuracy"].value is None
    same_name = [row("1", 1, "cats", set="x"), row("2", 0, "dogs", set="x")]
    assert values("whole_sets", same_name)["accuracy"].value == 50  # sets of two groups are two sets


def test_mme_points_add_up_as_in_the_published_script() -> None:
    tasks = " ".join(TASKS.values()).split()
    rows = [
        row(f"{t}{i}{q}", float(i > 0 or q > 0), t, set=f"{i}.jpg") for t in tasks for i in range(4) for q in (0, 1)
    ]
    found = values("mme", rows)
    assert found["OCR"].value == pytest.approx(100 * 7 / 8 + 100 * 3 / 4)
    assert found["perception"].value == pytest.approx(10 * 162.5) and found["cognition"].value == pytest.approx(650)
    assert found["perception"].low < 1625 < found["perception"].high
    part = values("mme", [r for r in rows if r["group"] != "OCR"])
    assert part["perception"].value is None and "OCR" in part["perception"].note and part["OCR"].value is None
    assert part["cognition"].value == pytest.approx(650)


def test_an_image_with_a_row_that_was_not_answered_is_in_no_share_of_images() -> None:
    rows = [row("1", 1, "OCR", set="a"), row("2", None, "OCR", set="a"), row("3", 1, "OCR", set="b")]
    rows.append(row("4", 1, "OCR", set="b"))
    assert values("mme", rows)["OCR"].value == 200
    assert values("mme", rows[:2])["OCR"].value is None


def test_mmmu_weighs_domains_by_questions() -> None:
    rows = [row("1", 1, "Art"), row("2", 0, "Music"), row("3", 0, "Music"), row("4", 1, "Math")]
    found = values("mmmu", rows)
    assert found["accuracy"].value == 50 and found["accuracy/Art and Design"].value == pytest.approx(100 / 3)
    assert found["accuracy/Science"].value == 100 and found["accuracy/Business"].value is None
