"""Our scorers against what the published ones returned, case by case: values to 1e-6, exceptions by name."""

import copy
import math
from typing import Any

import pytest
from golden.decisions_scorers import RAISES
from golden.fixtures import Entry

from vlm.eval.scorers import SCORERS


def same(found: object, expected: object) -> bool:
    if expected == "NaN":
        return isinstance(found, float) and math.isnan(found)
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same(found[k], expected[k]) for k in expected)
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(found, expected, rel_tol=0, abs_tol=1e-6)
    return found == expected


def outcome(name: str, inputs: dict[str, Any]) -> object:
    """The result, or the exception in the form of the fixtures. Inputs are copied: a scorer may not change them."""
    kept = copy.deepcopy(inputs)
    try:
        result = SCORERS[name](**inputs, compat="upstream")
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        result = {"raises": type(error).__name__}
    assert inputs == kept, f"{name} changed its inputs"
    return result


@pytest.mark.cases("scorers")
def test_scorer_returns_the_published_values(entry: Entry) -> None:
    assert entry.key in SCORERS, f"{entry.path}: no scorer is called {entry.key!r}; known: {', '.join(sorted(SCORERS))}"
    cases = entry.value
    wrong = [
        (case["inputs"], case["expected"], found)
        for case in cases
        if not same(found := outcome(entry.key, case["inputs"]), case["expected"])
    ]
    assert not wrong, f"{len(wrong)} of {len(cases)} differ; inputs, expected, found: {wrong[0]}"


@pytest.mark.cases("scorers")
def test_every_recorded_exception_has_a_decision(entry: Entry) -> None:
    recorded = [case["expected"] for case in entry.value]
    raised = {value["raises"] for value in recorded if isinstance(value, dict) and "raises" in value}
    assert raised <= RAISES.get(entry.key, {}).keys(), f"{entry.key}: no decision for {raised}"


def test_decisions_are_about_scorers() -> None:
    assert RAISES.keys() <= SCORERS.keys()
