"""Each `vlm` line that a message, a recipe or the catalogue shows is one that can be typed: verb and options exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import known_options, parse

ROOT = Path(__file__).parent.parent
SOURCES = sorted(ROOT.glob("packages/*/src/vlm/*/**/*.py"))
TABLES = sorted(ROOT.glob("packages/*/src/vlm/*/**/*.yaml"))
LINE = re.compile(r"(?:^|[:;] |&& |# (?:Run|Needs): +)vlm ([a-z][^`]*?)(?=   |, |; | && | \(|: | \.\.\.|$)")
"""A line to type as it is, up to where the sentence continues."""
QUOTED = re.compile(r"`vlm ([a-z][^`]*)`")
"""A command that a sentence names; it may leave out what it needs."""
TYPICAL = {"count": "3", "n": "3", "N": "3"}
"""Values of placeholders that a name alone would not parse as."""


def template(node: ast.AST) -> str | None:
    """A string, or an f-string with `name` for each {placeholder}."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else TYPICAL.get(ast.unparse(part.value), "name")
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return None


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each string of a module that is no docstring, and no mere name of a command.

    `locked(folder, "vlm eval ...")`, `purpose` and `where` say who holds a lock and whose options are wrong.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="where" | "purpose", value=value) | ast.Assign([ast.Name("purpose")], value):
                skipped.add(id(value))
            case ast.Call(ast.Name("locked"), arguments):
                skipped |= {id(argument) for argument in arguments}
    for node in ast.walk(tree):
        if id(node) not in skipped and (text := template(node)):
            yield f"{path.relative_to(ROOT)}:{node.lineno}", text  # type: ignore[attr-defined]


def shown() -> list[tuple[str, str]]:
    """(place, text) of all that a user may read: strings of the modules, lines of the tables."""
    found = [pair for path in SOURCES for pair in texts(path)]
    for path in TABLES:
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [(f"{path.relative_to(ROOT)}:{i}", line) for i, line in enumerate(lines, 1)]
    return found


SHOWN = shown()
WHOLE = [(place, match[1]) for place, text in SHOWN for match in LINE.finditer(text)]
NAMED = [(place, match[1]) for place, text in SHOWN for match in QUOTED.finditer(text)]


def test_lines_are_found_where_they_are_known_to_be() -> None:
    assert len(WHOLE) > 80 and len(NAMED) > 20
    places = {place.split("/src/vlm/")[1].rpartition(":")[0] for place, _ in [*WHOLE, *NAMED]}
    assert {"train/plan/missing.py", "core/fetch/fetch.py", "cli/find.py", "train/recipes/v2pe-32k.yaml"} <= places


def test_each_line_to_type_parses_to_its_end() -> None:
    wrong = []
    for place, line in WHOLE:
        try:
            parse(shlex.split(line))
        except Exception as error:  # noqa: BLE001  # whatever a user would see
            wrong.append(f"{place}: vlm {line}: {error}")
    assert not wrong, "\n".join(wrong)


def test_each_command_that_a_sentence_names_exists_with_its_options() -> None:
    wrong = []
    for place, line in NAMED:
        try:
            known_options(shlex.split(line))
        except Exception as error:  # noqa: BLE001  # whatever a user would see
            wrong.append(f"{place}: vlm {line}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("line", ["dowload NAME", "download NAME --al", "data organise easy-vqa", "weights convert"])
def test_a_line_that_cannot_be_typed_is_noticed(line: str) -> None:
    with pytest.raises(BaseException, match=r"(?i)no such|unknown|missing"):
        parse(shlex.split(line))


@pytest.mark.parametrize("line", ["evaluate", "eval --sahrd I/N", "data organise"])
def test_a_named_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no option|no such|unknown"):
        known_options(shlex.split(line))
