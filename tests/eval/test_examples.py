"""The examples of the package are right: the README's block, and the examples in docstrings."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
from pathlib import Path

import pytest

import vlm.eval

README = Path(__file__).parents[2] / "packages" / "eval" / "README.md"
OPTIONAL = {"vlm.eval.harness.lmms_eval", "vlm.eval.harness.vlmevalkit"}
MODULES = [m.name for m in pkgutil.walk_packages(vlm.eval.__path__, "vlm.eval.") if m.name not in OPTIONAL]


def test_the_readme_prints_what_its_comments_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    expected = re.findall(r"^print\(.*\) +# (.*)$", block, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, str(README), "exec"), {"__name__": "readme"})
    assert len(expected) == 2 and printed.getvalue().splitlines() == expected
    assert {path.name for path in (tmp_path / "out").glob("*.json*")} >= {"results.jsonl", "summary.json", "run.json"}


def test_every_public_name_is_in_the_readme() -> None:
    assert not {name for name in vlm.eval.__all__ if f"`{name}`" not in README.read_text(encoding="utf-8")}


@pytest.mark.parametrize("name", ["vlm.eval", *MODULES])
def test_the_examples_of_a_module_are_right(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
