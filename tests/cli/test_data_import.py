"""`vlm data show` and `vlm data import` as they are typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.foreign_rows import ASK, COLORS, columns, llava, png, sheet
from vlm.cli.commands.data import app
from vlm.core.errors import DataError

run = CliRunner()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV of three rows with a column that nothing reads, and its pictures."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for color in COLORS:
        (tmp_path / f"images/{color}.png").write_bytes(png(color))
    (tmp_path / "a.csv").write_text(sheet([{**columns(color), "price": 3} for color in COLORS]))
    return tmp_path / "a.csv"


def test_show_names_format_and_form_and_shows_three_samples(table: Path) -> None:
    done = run.invoke(app, ["show", "a.csv"])  # found from the working directory, which is not the home
    assert done.exit_code == 0, done.output
    assert f"{table}: CSV, 3 rows; form: columns" in done.output and "not read: price" in done.output
    assert done.output.count("24 x 16") == 3 and f"human: {ASK}" in done.output and "gpt: blue" in done.output
    facts = json.loads(run.invoke(app, ["show", str(table), "--json", "--count", "1"]).stdout)
    assert (facts["rows"], len(facts["samples"]), facts["faults"]) == (3, 1, [])


def test_show_names_every_fault(table: Path) -> None:
    with table.open("a") as file:
        file.write("images/grey.png,What?,grey,1\nimages/red.png,What?,,1\n")
    done = run.invoke(app, ["show", str(table)])
    assert isinstance(done.exception, DataError)
    said = str(done.exception)
    for part in ("2 of the first 5 rows", f"{table}:5: missing file: ", f"{table}:6: empty answer: "):
        assert part in said
    assert "gpt: red" in done.output


def test_import_says_what_it_read_and_the_same_line_again_changes_nothing(table: Path) -> None:
    done = run.invoke(app, ["import", str(table), "dataset/a"])
    assert done.exit_code == 0, done.output
    assert "3 rows = 3 written + 0 refused" in done.output and "not read: price (3)" in done.output
    folder = table.parent / "home/dataset/a"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    manifest = json.loads(run.invoke(app, ["import", str(table), "dataset/a", "--json"]).stdout)
    assert manifest["written"] == 3 and {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_a_set_may_hold_on_purpose_needs_its_word(table: Path) -> None:
    quoted = {"conversations": [{"from": "human", "value": "Write <image>."}, {"from": "gpt", "value": "<image>"}]}
    (table.parent / "q.jsonl").write_text(json.dumps(quoted) + "\n")
    assert isinstance(run.invoke(app, ["import", "q.jsonl", "dataset/q"]).exception, DataError)
    done = run.invoke(app, ["import", "q.jsonl", "dataset/q", "--allow", "quoted-placeholders"])
    assert done.exit_code == 0 and "1 rows = 1 written" in done.output, done.output
    (table.parent / "a.json").write_text(json.dumps([llava("red"), {**llava("red"), "image": None}]))
    done = run.invoke(app, ["import", "a.json", "dataset/b", "--max-lost", "0.5"])
    assert "2 rows = 1 written + 1 refused: placeholders 1" in done.output, done.output
