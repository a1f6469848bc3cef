"""Screens: whole names at 80 columns, a plan that begins with its answer, exact echoes, and completed names."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len

from support.command_line import all_commands, verb
from vlm.cli.complete import COMPLETED
from vlm.cli.main import VERBS, main, plain_help
from vlm.cli.show.rows import show_rows
from vlm.train.recipe.recipe import load_recipe

COMMANDS = all_commands()


def vlm(*words: str, home: Path, columns: int = 80, **env: str) -> subprocess.CompletedProcess[str]:
    around = {**os.environ, "VLM_HOME": str(home), "NO_COLOR": "1", "COLUMNS": str(columns), **env}
    line = [sys.executable, "-m", "vlm.cli.main", *words]
    return subprocess.run(line, env=around, capture_output=True, text=True, timeout=120, cwd=home)


@pytest.mark.parametrize("what", ["weights", "data", "benchmarks", "suites", "recipes"])
@pytest.mark.parametrize("columns", [80, 40])
def test_a_list_has_one_line_for_each_name_and_cuts_none(what: str, columns: int, tmp_path: Path) -> None:
    names = [row["name"] for row in json.loads(vlm("list", what, "--json", home=tmp_path).stdout)]
    lines = vlm("list", what, home=tmp_path, columns=columns).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == names
    assert all(cell_len(line) <= columns for line in lines)


def test_columns_without_room_are_named_and_into_a_file_all_are_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"name": "a" * 50, "state": "present", "title": "図" * 40}, {"name": "b", "state": "", "title": "x"}]
    for columns, lines, left in (
        ("30", ["name", "a" * 50, "b"], "state, title"),
        ("60", ["name" + " " * 48 + "state", "a" * 50 + "  present", "b"], "title"),
    ):
        monkeypatch.setenv("COLUMNS", columns)
        show_rows(rows)
        out, err = capsys.readouterr()
        assert out.splitlines() == lines and f"no room for {left}:" in err
    monkeypatch.setenv("COLUMNS", "80")
    show_rows(rows)
    assert capsys.readouterr().out.splitlines()[1] == "a" * 50 + "  present  " + "図" * 9 + "…"
    monkeypatch.delenv("COLUMNS")
    show_rows(rows)
    assert capsys.readouterr().out.splitlines()[1].endswith("図" * 40)


def test_a_plan_begins_with_its_answer_and_lists_the_data_only_when_asked(tmp_path: Path) -> None:
    short = vlm("plan", "v2pe-32k", "--machine", "a100-80", "--nodes", "4", home=tmp_path)
    first = short.stdout.splitlines()[0]
    assert first.startswith("v2pe-32k fits: ") and " of 80 GB on each of 32 x a100-80; at most " in first
    assert first.endswith(" GPU-hours") and "45 sets (`vlm plan --data` lists them)" in short.stdout
    long = vlm("plan", "v2pe-32k", "--machine", "a100-80", "--nodes", "4", "--data", home=tmp_path)
    sets = [data.name for data in load_recipe("v2pe-32k").data]
    assert len(sets) == 45 and all(f"{name} x " in long.stdout for name in sets)
    assert not any(f"{name} x " in short.stdout for name in sets)
    small = vlm("plan", "convllava-stage3", "--machine", "a100-40", "--processes", "1", home=tmp_path)
    assert small.returncode == 7 and small.stdout.startswith("convllava-stage3 does not fit: ")


def test_a_dry_run_echoes_what_can_be_pasted_to_the_letter(tmp_path: Path) -> None:
    sets = ["--set", "log=[tensorboard]", "--set", "title='[red] a long title [/red] " + "word " * 40 + "'"]
    done = vlm("train", "-r", "quickstart-v2pe-sft", *sets, "--dry-run", home=tmp_path)
    said = done.stdout
    assert "\nlog:\n- tensorboard\n" in said
    line = next(line for line in said.splitlines() if line.startswith("vlm train "))
    again = subprocess.run(["bash", "-c", f'printf "%s\\n" {line}'], capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[2:] == ["--recipe", "quickstart-v2pe-sft", *sets]
    begin = said.index("\ntitle: ")
    shown = yaml.safe_load(said[begin : said.index("data mixture")])
    assert shown["title"] == load_recipe("quickstart-v2pe-sft", overrides=tuple(sets[1::2])).title


def test_help_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    app = typer.Typer()

    @app.command()
    def go(name: str = typer.Option("", help="Needs [serve] and [/red].")) -> None:
        """Install vlm[train] or [flash]."""

    monkeypatch.setenv("COLUMNS", "100")
    command = typer.main.get_command(app)
    plain_help(command)
    with pytest.raises(SystemExit):
        command(["--help"])
    out = capsys.readouterr().out
    assert "Needs [serve] and [/red]." in out and "Install vlm[train] or [flash]." in out


def test_completion_is_installed_by_vlm_alone(tmp_path: Path) -> None:
    assert "--install-completion" in vlm("--help", home=tmp_path).stdout
    for name, command in [*COMMANDS.items(), *((name, verb(name)) for name in VERBS)]:
        assert not [p.name for p in command.params if "completion" in p.name], name


@pytest.fixture
def completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What bash offers for a line whose last word is begun."""

    def ask(*words: str) -> list[str]:
        asked = {
            "_VLM_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["vlm", *words]),
            "COMP_CWORD": str(len(words)),
        }
        for key, value in {**asked, "VLM_HOME": str(tmp_path)}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(sys, "argv", ["vlm"])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert not stop.value.code and not err, err
        return out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("wat", "watch"),
        ("train --recipe convllava-st", "convllava-stage3"),
        ("launch -r v2pe-", "v2pe-32k"),
        ("plan intern", "internvl2-2b-baseline"),
        ("plan x --machine h1", "h100"),
        ("recipe show v2", "v2pe-256k"),
        ("recipe check v2pe-32k v2", "v2pe-256k"),
        ("data check quick", "quickstart-v2pe-sft"),
        ("eval po", "pope"),
        ("eval pope al", "all"),
        ("eval score mm-v", "mm-vet"),
        ("eval pope -m V2", "V2PE-32K"),
        ("data mini chart", "chartqa"),
        ("chat -m InternVL2-", "InternVL2-2B"),
        ("serve --model mi", "mine-sft"),
        ("use mi", "mine-sft"),
        ("weights inspect mi", "mine-sft"),
        ("weights diff mine-sft V2", "V2PE-256K"),
        ("weights make tiny-", "tiny-convllava"),
        ("download easy", "easy-vqa"),
        ("download --all quick", "quickstart"),
        ("download --recipe smol-", "smol-v2pe-sft"),
        ("download --benchmark mi", "milebench"),
        ("data organize V2PE", "V2PE-Data"),
        ("watch demo/tr", "demo/train/mine-sft"),
    ],
)
def test_names_are_completed(line: str, name: str, completed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs/demo/train/mine-sft"
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text("{}")
    (folder / "model/a.safetensors").write_text("")
    (folder / "metrics.jsonl").write_text("")
    offered = completed(*line.split())
    assert name in [*offered, *map(str.lower, offered)], offered
    assert all(word.startswith(line.split()[-1]) for word in offered)


def test_a_damaged_home_ends_no_completion(completed: Any, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/mine.yaml").write_text("[")
    assert completed("eval", "po") in ([], ["pope"])


def test_every_parameter_that_takes_such_a_name_completes_it() -> None:
    known = {key.rpartition(": ")[2] for key in COMPLETED}
    for key in ("recipe", "benchmark", "benchmarks", "bench", "model", "preset", "machine", "group"):
        assert key in known
    lacking = [
        f"{name}: {parameter.name}"
        for name, command in COMMANDS.items()
        for parameter in command.params
        if (parameter.name in COMPLETED or f"{name.split()[0]}: {parameter.name}" in COMPLETED)
        and parameter._custom_shell_complete is None
    ]
    assert not lacking
