"""Titles, names and replies from elsewhere are shown as they are: no markup, escape sequence, path or formula."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from support import report_run
from vlm.cli.commands.chat import print_answer
from vlm.cli.show.evaluation import show_all, show_evaluation
from vlm.cli.show.screen import Screen, bold
from vlm.core.errors import ConfigError, DataError
from vlm.core.text import printable_json, printable_lines
from vlm.eval.benchmark import load_benchmark
from vlm.eval.report.render.csv_table import safe_cell
from vlm.eval.report.write import write_report
from vlm.train.recipe.recipe import load_recipe

CLI = Path(__file__).parents[2] / "packages" / "cli" / "src" / "vlm" / "cli"
MARKUP = "[/red] x [/] [bold]y :smile: [link=http://x]"
ESCAPES = "\x1b[31mred\x1b]0;title\x07 \x9b2J \r over \u202e turned"
RECIPE = {
    "title": MARKUP + ESCAPES,
    "name": "tinyb",
    "model": {"start": "pretrained/tiny", "preset": "tiny-internvl2"},
    "data": [{"name": MARKUP, "file": "dataset/digits/train.jsonl", "root": "dataset/digits"}],
    "trainable": ["*"],
    "optimizer": {"lr": 1e-3, "warmup": 0.1},
    "batch": {"samples": 4, "max_tokens": 1024},
    "max_length": 1024,
    "steps": 60,
    "sources": {"": "ours"},
}


def vlm(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "250"}
    line = [sys.executable, "-m", "vlm.cli.main", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, cwd=home)


def write(path: Path, **changes: object) -> str:
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return str(path)


def is_quiet(text: str) -> bool:
    """Whether a terminal would obey nothing in it."""
    return printable_lines(text) == text


def test_a_hostile_recipe_is_planned_and_shown_like_any_other(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml")
    for words in (["recipe", "show", recipe], ["recipe", "check", recipe], ["train", "--dry-run", "-r", recipe]):
        done = vlm(*words, home=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode in (0, 1) and "Traceback" not in said and "MarkupError" not in said, said
        assert is_quiet(said)
    assert "[/red] x [/] [bold]y :smile:" in " ".join(said.split())


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".hidden", "x" * 300, "a\nb", "", 5])
def test_a_recipe_whose_name_is_a_path_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name: "):
        load_recipe(write(tmp_path / "r.yaml", name=name))
    if name != "a\nb":  # YAML folds it into one line
        with pytest.raises(ConfigError):
            load_recipe(write(tmp_path / "r.yaml"), overrides=(f"name={name}",))


@pytest.mark.parametrize("base", ["../../x", "/etc/passwd", 5, ["a"], {"a": 1}])
def test_a_base_is_a_name_too(base: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base"):
        load_recipe(write(tmp_path / "r.yaml", base=base))


@pytest.mark.parametrize("changes", [{2024: 1}, {"differences": [1]}, {"differences": [{"set": 3}]}, {"sources": 3}])
def test_parts_of_another_kind_are_named(changes: dict, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    with pytest.raises(ConfigError):
        load_recipe(str(path), published=True)
    path.write_text("? 2024-01-01\n: x\n")
    with pytest.raises(ConfigError, match="put quotes"):
        load_recipe(str(path))


@pytest.mark.parametrize("key", ["name", "folder"])
def test_a_benchmark_table_that_names_a_path_outside_is_refused(key: str, tmp_path: Path) -> None:
    table = load_benchmark("pope").model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "mine.yaml").write_text(yaml.safe_dump({**table, key: "../../x"}))
    with pytest.raises(ConfigError, match=f"{key}: "):
        load_benchmark("mine", tmp_path)


def test_names_of_results_stay_in_the_folder_of_results(tmp_path: Path) -> None:
    for name in ("../../x", "a/b", "x" * 300):
        for words in (["eval", "pope", "--mini"], ["eval", "score", "pope", "answers.jsonl", "--mini"]):
            done = vlm(*words, "--name", name, home=tmp_path)
            assert done.returncode == 2 and "name" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path.parent / "x").exists() and not (tmp_path / "runs").exists()


def test_commands_that_name_hostile_yaml_end_with_a_message(tmp_path: Path) -> None:
    files = {
        "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "deep": "[" * 9_999,
        "python": "a: !!python/object/apply:os.system [x]",
        "empty": "",
        "one": "1",
        "nul": "\0",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        words = [["recipe", "check"], ["list", "data"]] if name == "bomb" else [["recipe", "check"]]
        for line in words[:1]:
            done = vlm(*line, str(tmp_path / f"{name}.yaml"), home=tmp_path)
            assert done.returncode == 2 and f"{name}.yaml" in done.stderr, (name, done.stderr)
            assert "Traceback" not in done.stderr


def test_a_reply_obeys_nothing_on_the_terminal_of_a_chat(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = ["one\nline ", "\x1b", "[31m", ESCAPES, "\ud800", " 👨\u200d👩 答案"]
    session = SimpleNamespace(stream=lambda question, **_: iter(pieces))
    print_answer(session, "?", [], [], {})
    said = capsys.readouterr().out
    assert is_quiet(said) and said.startswith("one\nline \\x1b[31m") and "👨\u200d👩 答案\n" in said


def test_results_of_a_hostile_name_are_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    metric = {
        "name": MARKUP,
        "value": None,
        "low": None,
        "high": None,
        "scored": 0,
        "total": 2,
        "note": MARKUP + ESCAPES,
    }
    summary = {
        "title": "POPE", "benchmark": "POPE", "model": MARKUP + ESCAPES, "metrics": [metric], "strict_metrics": [],
        "outcomes": {"error": 2}, "data": {"mini": False, "items": 2, "available": 9},
    }  # fmt: skip
    show_evaluation(summary, Path("[/red]"))
    show_all([(summary, "default")], {"[/]": DataError(MARKUP + ESCAPES)})
    said = capsys.readouterr()
    assert is_quiet(said.out) and is_quiet(said.err) and "the first 2 of 9 items" in said.out
    assert "[/red]" in said.out and "\\x1b[31m" in said.err


def test_tables_and_styles_of_a_screen_show_what_they_are_given() -> None:
    from rich.table import Table

    screen = Screen()
    screen.file = io.StringIO()
    table = Table("[red]head", title="[/]" + ESCAPES)
    table.add_row(MARKUP + ESCAPES)
    screen.print(table, bold(MARKUP), MARKUP)
    said = screen.file.getvalue()
    assert is_quiet(said) and said.count(":smile:") == 3 and "[red]head" in said


def test_json_on_a_screen_reads_back_and_is_quiet() -> None:
    value = {"a": MARKUP + ESCAPES + "\x7f\u2028\ud800 ü 模"}
    assert json.loads(printable_json(value, indent=1)) == value and is_quiet(printable_json(value, indent=1))


def test_all_of_the_command_line_prints_through_two_modules() -> None:
    """`say` and `Screen` show foreign text; a second way to print would forget it."""
    others = []
    for path in sorted(CLI.rglob("*.py")):
        if path.name in ("say.py", "screen.py", "guards.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("print", "Console", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write"):
                others.append(f"{path.name}:{node.lineno}: {name}")
    assert others == []


@pytest.mark.parametrize("cell", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", '=HYPERLINK("http://x")'])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert safe_cell(cell) == f"'{cell}"


def test_numbers_and_texts_stay_cells() -> None:
    for cell in ("-1.5", "+3", "POPE", "", None, -2.5, "1e-3", "–"):
        assert safe_cell(cell) == cell


def test_a_report_of_hostile_names_runs_nothing_and_is_written_whole(tmp_path: Path) -> None:
    """Scripts, formulas and very long names in every text of results, summaries, recipes and the rule graph."""
    attack = "<img src=x onerror=\"document.title='P'\"></script><script>document.title=1</script>\u2028--><!--<script>"
    run = report_run.make_run(tmp_path / "run")
    for path in run.glob("eval/*/*/*/results.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            for key in ("prompt", "completion", "extracted", "why", "group"):
                row[key] = '=HYPERLINK("http://x")' + attack if isinstance(row[key], str) else row[key]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in run.glob("eval/*/*/*/summary.json"):
        summary = json.loads(path.read_text())
        summary["model"] = "=1+1" + attack + "$\\frac{$" + "m" * 3000
        summary["title"] += attack
        path.write_text(json.dumps(summary))
    (run / "rulegraph.dot").write_text(
        report_run.DOT.replace('label = "', 'label = "<script>document.title=1</script>')
    )
    _, files = write_report([run], tmp_path / "report")
    assert {"index.html", "report.md", "report.csv", "report.json"} <= {path.name for path in files}
    assert all(len(os.fsencode(path.name)) <= 210 for path in files)
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("</script>") == 2 and "<img src=x" not in page and "<script>document" not in page
    markdown = (tmp_path / "report/report.md").read_text()
    assert "<script" not in markdown and "<img" not in markdown
    import csv

    with (tmp_path / "report/report.csv").open(newline="") as f:
        cells = [cell for line in csv.reader(f) for cell in line]
    assert all(safe_cell(cell) == cell for cell in cells) and any(cell.startswith("'=1+1") for cell in cells)
