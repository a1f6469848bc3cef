"""The golden runner on sets with other names, counts, nesting, pictures and layers than ours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from golden.another_layout import PICTURES, Written, write_set
from golden.fixtures import FixtureError, find_fixtures
from golden.formulas import FormulaError, picture

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


def run(folder: Path, tmp_path: Path, *tests: str) -> dict[str, tuple[str, str]]:
    """{`test_name[id]`: (outcome, message)} of the golden tests on a folder."""
    files = [str(HERE / f"test_golden_{name}.py") for name in tests]
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", *files, "--golden", str(folder), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", "--timeout=600", "-o", "addopts=--import-mode=importlib"],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome, message = ("passed", "") if bad is None else (bad.tag, f"{bad.get('message')}\n{bad.text}")
        found[str(case.get("name"))] = (outcome, message)
    return found


ALL = ("fixtures", "positions", "packing", "sharding", "tiling", "templates", "trainable", "models", "scorers")


def entry_of(test: str) -> str:
    """The id in `test_name[id]`."""
    return test.partition("[")[2].removesuffix("]")


def ids(written: dict[str, list[str]]) -> set[str]:
    return {name for names in written.values() for name in names}


def test_every_case_of_a_set_in_another_layout_runs(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    written = write_set(folder)
    found = find_fixtures(folder)
    assert not found.faults
    counts = {section: sorted(entry.id for entry in entries) for section, entries in found.entries.items()}
    assert counts == {section: sorted(names) for section, names in written.ids.items()}
    assert len(written.ids) == 20 and len(ids(written.ids)) > 120

    outcomes = run(folder, tmp_path, *ALL)
    assert not {test: text for test, (outcome, text) in outcomes.items() if outcome not in ("passed", "skipped")}
    assert {entry_of(test) for test, (outcome, _) in outcomes.items() if outcome == "passed"} >= ids(written.ids)


def test_every_spoiled_value_fails_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    written: Written = write_set(folder, corrupt=True)
    assert written.spoiled.keys() == written.ids.keys(), "a section without a spoiled value"
    outcomes = run(folder, tmp_path, *ALL)
    failed = {entry_of(test) for test, (outcome, _) in outcomes.items() if outcome in ("failure", "error")}
    assert failed == ids(written.spoiled)


def case_of(**changes: Any) -> dict[str, Any]:
    layout = [["text", 2]]
    return {
        "version": "default",
        "num_image_token": 4,
        "layout": layout,
        "dtype": "int64",
        "positions": [0, 1],
        **changes,
    }


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_a_set_of_one_kind_runs_and_the_others_say_that_they_are_missing(tmp_path: Path) -> None:
    write(tmp_path / "set", "any.json", {"whatever": [case_of(id="only"), case_of()]})
    outcomes = run(tmp_path / "set", tmp_path, "fixtures", "positions", "packing")
    passed = [entry_of(test) for test, (outcome, _) in outcomes.items() if outcome == "passed" and "[" in test]
    assert passed == ["only", "whatever1"]
    skipped = {text.split("\n")[0] for outcome, text in outcomes.values() if outcome == "skipped"}
    assert {f"no {name} below {tmp_path / 'set'}" for name in ("packing/cases", "packing/len2weight")} <= skipped


def test_a_folder_without_a_fixture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FixtureError, match="holds no golden fixture"):
        find_fixtures(tmp_path)
    with pytest.raises(FixtureError, match="is no folder"):
        find_fixtures(tmp_path / "nothing")
    outcomes = run(tmp_path, tmp_path, "positions")
    assert [outcome for outcome, _ in outcomes.values()] == ["error"]
    assert "holds no golden fixture" in next(iter(outcomes.values()))[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"cases": [case_of(rotation=3, id="x")]}, r"a.json: cases: x: unknown keys \['rotation'\]"),
        ("a.json", {"cases": [{"id": "x", "melody": 1}]}, "a.json: cases: x: an entry of no known kind: .*melody"),
        ("a.json", {"cases": [3]}, "a.json: cases: None: an entry of no known kind: int"),
        ("a.json", {"anls": [{"inputs": {}, "expected": 1, "mode": 2}]}, r"anls: unknown keys \['mode'\]"),
        ("a.json", [case_of()], "a.json: a list, expected a mapping"),
        ("a.npz", {}, "a.npz: a file of no known kind"),
    ],
)
def test_what_is_not_known_is_named(tmp_path: Path, name: str, content: object, message: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(AssertionError, match=message):
        assert not (faults := find_fixtures(tmp_path).faults), "\n".join(faults)


def test_unknown_names_inside_a_case_fail_and_say_so(tmp_path: Path) -> None:
    unknown_scorer, unknown_version = [{"inputs": {}, "expected": 1}], [case_of(version="v9", id="v")]
    write(tmp_path / "set", "a.json", {"cases": unknown_version, "nobody": unknown_scorer})
    template = {"klingon": {"system_message": "", "roles": []}}
    strange = {"kind": "dream", "file": "none.safetensors", "id": "k"}
    write(tmp_path / "set", "b.json", {"cases": [strange], "templates": template})
    image = {"variants": {}, "width": 2, "height": 2, "pattern": "fog", "tile_uint8_sha256": [], "id": "fog"}
    write(tmp_path / "set", "c.json", {"images": [image]})
    outcomes = run(tmp_path / "set", tmp_path, "fixtures", "positions", "models", "scorers", "templates", "tiling")
    text = "\n".join(text for outcome, text in outcomes.values() if outcome == "failure")
    for message in ("version 'v9'", "'nobody'", "kind 'dream'", "template 'klingon'", "pattern 'fog' has no formula"):
        assert message in text, message


@pytest.mark.parametrize("name", PICTURES)
def test_a_formula_makes_the_picture_of_numpy(name: str) -> None:
    formula, channels = PICTURES[name]
    y, x = np.mgrid[:31, :52].astype(np.int64)
    np.testing.assert_array_equal(np.asarray(picture(formula, 52, 31)), np.stack(channels(x, y), -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("r=__import__('os').getpid(), g=0, b=0", "no arithmetic"),
        ("r=x.__class__, g=0, b=0", "no arithmetic"),
        ("r=(lambda: 1)(), g=0, b=0", "no arithmetic"),
        ("r=[k for k in x], g=0, b=0", "no arithmetic"),
        ("r='a', g=0, b=0", "no arithmetic"),
        ("r=open(x), g=0, b=0", "no arithmetic"),
        ("r=z+1, g=0, b=0", "'z' is not defined"),
        ("import os", "is no assignment"),
        ("x.flat=0; r=1, g=1, b=1", "assigns to something else"),
        ("r=(x, g=0", "'r=\\(x, g=0'"),
        ("r=x, g=y", "does not assign b"),
    ],
)
def test_a_formula_is_arithmetic_and_nothing_else(formula: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        picture(formula, 4, 4)
