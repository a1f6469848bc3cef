"""Every test that docs/reliability.md and SECURITY.md name exists: a row without its test is a claim."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/reliability.md", "SECURITY.md")


def rows(page: str) -> list[str]:
    """The rows of all tables with a column for tests."""
    lines = (ROOT / page).read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line.startswith("| ") and not re.match(r"\| (fault|what|from|\*\*)", line)]


@pytest.mark.parametrize("page", PAGES)
def test_every_row_names_tests_that_exist(page):
    found, lost = 0, []
    for row in rows(page):
        names = re.findall(r"`(tests/[^`:]+\.py)(?:::(\w+))?`", row)
        if not names and re.fullmatch(r"\| [^|]+(\| *[\d,]+ *)+\|", row):
            continue  # the numbers
        assert names, f"{page}: no test in {row}"
        for file, function in names:
            found += 1
            path = ROOT / file
            defined = {
                node.name
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if path.exists() else ""))
                if isinstance(node, ast.FunctionDef)
            }
            if not path.exists() or (function and function not in defined):
                lost.append(f"{file}::{function}")
    assert found > 10 and not lost, lost
