"""Our scorers against what the published ones returned, case by case: values to 1e-6, exceptions by name."""

import copy
import importlib.util
import json
import math
from pathlib import Path

import pytest

from vlm.eval.scorers import SCORERS


def raises_table() -> dict[str, dict[str, str]]:
    spec = importlib.util.spec_from_file_location("decisions_scorers", Path(__file__).parent / "decisions_scorers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RAISES


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


def outcome(name: str, inputs: dict) -> object:
    """The result, or the exception in the form of the fixtures. Inputs are copied: a scorer may not change them."""
    kept = copy.deepcopy(inputs)
    try:
        result = SCORERS[name](**inputs, compat="upstream")
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        result = {"raises": type(error).__name__}
    assert inputs == kept, f"{name} changed its inputs"
    return result


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_scorer_returns_the_published_values(name: str, golden: Path) -> None:
    cases = json.loads((golden / "scorers.json").read_text(encoding="utf-8")).get(name)
    if cases is None:
        pytest.skip(f"{name}: no cases in {golden}")
    wrong = [
        (case["inputs"], case["expected"], found)
        for case in cases
        if not same(found := outcome(name, case["inputs"]), case["expected"])
    ]
    assert not wrong, f"{len(wrong)} of {len(cases)} differ; inputs, expected, found: {wrong[0]}"


def test_the_fixtures_and_the_scorers_meet(golden: Path) -> None:
    """A renamed scorer or an empty file would otherwise pass by skipping everything."""
    names = json.loads((golden / "scorers.json").read_text(encoding="utf-8")).keys()
    assert names & SCORERS.keys()


def test_every_recorded_exception_has_a_decision(golden: Path) -> None:
    cases = json.loads((golden / "scorers.json").read_text(encoding="utf-8"))
    table = raises_table()
    assert table.keys() <= SCORERS.keys()
    for name in SCORERS.keys() & cases.keys():
        found = {
            c["expected"]["raises"]
            for c in cases[name]
            if isinstance(c["expected"], dict) and "raises" in c["expected"]
        }
        assert found <= table.get(name, {}).keys(), f"{name}: no decision for {found}"
