"""The strict rules agree with a careful reader: fifty replies in ten styles for each, written and read by hand.

A file of `strict/` names a rule, its arguments for the reply and the reference, and the replies of each style with what
a person who reads them says: [reply, expected] or [reply, reference, expected]. A rule that `refuses` raises ValueError
for a reply without a meaning: null.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import Item
from vlm.eval.run.score import score_item
from vlm.eval.scorers import SCORERS

FILES = sorted((Path(__file__).parent / "strict").glob("*.yaml"))
RULES: dict[str, dict[str, Any]] = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
CASES = [
    pytest.param(name, case, id=f"{name}-{style}-{number}")
    for name, rule in RULES.items()
    for style, cases in rule["cases"].items()
    for number, case in enumerate(cases)
]


def read(rule: dict[str, Any], case: list[Any]) -> Any:
    """What the strict rule makes of a reply."""
    reply, *reference, _ = case
    given = {rule["reply"]: reply, **({rule["reference"]: reference[0]} if reference else {})}
    if rule.get("rows"):  # the rule scores rows of a file
        given = {"rows": [{"id": 0, **given}]}
    try:
        found = SCORERS[rule["rule"]](**given, **rule.get("inputs", {}), compat="fixed")
    except ValueError:
        if rule.get("refuses"):
            return None
        raise
    return found[rule["result"]] if "result" in rule else found


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_strict_rule_reads_as_a_person_does(name: str, case: list[Any]) -> None:
    expected = case[-1]
    if isinstance(expected, float):
        expected = pytest.approx(expected, abs=RULES[name].get("tolerance", 1e-6))
    assert read(RULES[name], case) == expected


def test_each_rule_has_fifty_replies_in_ten_styles() -> None:
    assert len(RULES) >= 10
    for name, rule in RULES.items():
        assert len(rule["cases"]) == 10 and all(len(cases) == 5 for cases in rule["cases"].values()), name
        replies = [tuple(map(str, case)) for cases in rule["cases"].values() for case in cases]
        assert len(set(replies)) == 50, name
        assert len({repr(case[-1]) for cases in rule["cases"].values() for case in cases}) > 1, name


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("(100, 100), (500, 500)", "points in parentheses"),
        ("<loc_100><loc_100><loc_500><loc_500>", "a box in tags"),
        ('{"x1": 100, "y1": 100, "x2": 500, "y2": 500}', "named numbers"),
        ("[100 100 500 500]", "numbers without commas"),
        ("[10%, 10%, 50%, 50%]", "numbers with a unit"),
        ("100, 100, 500, 500", "numbers without brackets"),
        ("[1, 2]", "another number of numbers than four"),
        ("It is on the left.", "no numbers"),
    ],
)
def test_a_box_in_another_form_says_why_it_fails(reply: str, why: str) -> None:
    item = Item("1", [], [64, 48, 320, 240], "", {"hw": [480, 640]})
    table = load_benchmark("refcoco-val").model_copy(update={"scorer": "refcoco_internvl"})
    found = score_item(table, item, reply, "fixed")
    assert found.value == 0 and found.extracted == f"no box [x1, y1, x2, y2]: {why}" and why in found.why
    assert score_item(table, item, "[100, 100, 500, 500]", "fixed").value == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("The answer is not yes", "no"),
        ("The answer isn't yes.", "no"),
        ("The answer is not no.", "yes"),
        ("I would not say yes.", "no"),
        ("It is not a yes.", "no"),
        ("The answer is not yes, the answer is no.", "no"),
        ("Not yes but no", "no"),
        ("The answer is neither yes nor no.", "unknown"),
        ("This is not a yes or no question.", "unknown"),
        ("I can't say yes.", "unknown"),
        ("I don't think the answer is yes.", "no"),
        ("The answer cannot be yes.", "no"),
        ("It is yes, isn't it? Yes.", "yes"),
        ("Is there no dog? Yes, there is one.", "yes"),
        ("Yes or no? Yes.", "yes"),
    ],
)
def test_a_denied_yes_is_a_no(reply: str, said: str) -> None:
    assert SCORERS["pope_parse"](reply, compat="fixed") == said


def test_digits_of_other_scripts_are_read_as_words_and_stop_no_run() -> None:
    for reply in ("\u0663", "The answer is \u0663.", "$\u0663"):
        assert SCORERS["mmlongbench_label"](3, reply, compat="fixed") == 0
        assert SCORERS["relaxed_accuracy"](reply, "3", compat="fixed") == 0


def test_a_decimal_is_no_whole_number_that_it_begins_with() -> None:
    kind = {"choices": None, "question_type": "free_form", "answer_type": "integer", "precision": None, "answer": "14"}
    for reply, right in (("14.6", False), ("13.999", False), ("14.0", True), ("14 m", True), ("14 M", False)):
        assert SCORERS["mathvista_normalize"](reply, **kind, compat="fixed")["true_false"] is right


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Vitamin C is shown.", ""),
        ("The label says Vitamin C is the best.", ""),
        ("It shows hepatitis B virus.", ""),
        ("They switch to plan B because of rain.", ""),
        ("The piece is in C major.", ""),
        ("A T cell and B cells are drawn", ""),
        ("Vitamin C is shown, so option D.", "D"),
        ("Vitamin C is shown. The answer is B.", "B"),
        ("The picture shows vitamin D; A is correct.", "A"),
        ("C. Vitamin B", "C"),
        ("I pick C", "C"),
        ("Picture B fits.", "B"),
        ("As A and B are wrong, C", "C"),
        ("A, B is wrong.", "A"),
    ],
)
def test_a_letter_of_a_name_is_no_option(reply: str, letter: str) -> None:
    assert SCORERS["option_post_process"](reply, dict.fromkeys("ABCD", ""), compat="fixed") == letter


def test_the_text_of_a_name_is_read_where_an_option_has_it() -> None:
    options = {"A": "Vitamin A", "B": "Vitamin C", "C": "Vitamin D"}
    for reply in ("Vitamin C is shown", "The answer is Vitamin C.", "Vitamin C is correct"):
        assert SCORERS["option_post_process"](reply, options, compat="fixed") == "B"


@pytest.mark.parametrize(
    ("reply", "reference", "score"),
    [
        ("about 1,998", "2000", 1),
        ("1,998", "2000", 1),
        ("1998", "2,000", 1),
        ("1998.5", "2000", 1),
        ("$1998", "2000", 1),
        ("1998 people", "2000", 1),
        ("It is about 1,998 dollars.", "2000", 1),
        ("1,500", "2000", 0),
        ("1998", "2000", 0),
        ("about 1998", "2000", 0),
        ("In 1998", "2000", 0),
        ("The peak was in 2009.", "2010", 0),
        ("2009 was the peak", "2010", 0),
        ("2,010", "2010", 1),
        ("2010.0", "2010", 1),
        ("2150", "2100", 1),
    ],
)
def test_four_bare_digits_may_be_a_year_and_other_forms_are_quantities(
    reply: str, reference: str, score: float
) -> None:
    assert SCORERS["relaxed_accuracy"](reply, reference, compat="fixed") == score


@pytest.mark.parametrize(
    "unit", ["the ", "A ", "(", "[", "**", "answer is ", "because ", "1,", "not ", "wait ", "\\boxed{"]
)
def test_long_replies_are_read_in_reasonable_time(unit: str) -> None:
    reply, start = unit * (20_000 // len(unit)), time.monotonic()
    for rule in RULES.values():
        read(rule, [reply, *([next(iter(rule["cases"].values()))[0][1]] if "reference" in rule else []), None])
    assert time.monotonic() - start < 20
