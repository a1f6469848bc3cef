"""The strict rules agree with a careful reader: fifty replies in ten styles for each, written and read by hand.

A file of `strict/` names a rule, its arguments for the reply and the reference, and the replies of each style with what
a person who reads them says: [reply, expected] or [reply, reference, expected].
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
    found = SCORERS[rule["rule"]](**given, **rule.get("inputs", {}), compat="fixed")
    return found[rule["result"]] if "result" in rule else found


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_strict_rule_reads_as_a_person_does(name: str, case: list[Any]) -> None:
    assert read(RULES[name], case) == (pytest.approx(case[-1]) if isinstance(case[-1], float) else case[-1])


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
    "unit", ["the ", "A ", "(", "[", "**", "answer is ", "because ", "1,", "not ", "wait ", "\\boxed{"]
)
def test_long_replies_are_read_in_reasonable_time(unit: str) -> None:
    reply, start = unit * (20_000 // len(unit)), time.monotonic()
    for rule in RULES.values():
        read(rule, [reply, *([next(iter(rule["cases"].values()))[0][1]] if "reference" in rule else []), None])
    assert time.monotonic() - start < 20
