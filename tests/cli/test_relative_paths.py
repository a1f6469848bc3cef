"""A relative path that is typed means the working directory, in every verb, wherever the home is."""

import json
from enum import EnumMeta
from pathlib import Path
from typing import Any

import pytest

from support.command_line import all_commands, parse
from vlm.cli.main import WRITTEN, typed
from vlm.core.home import lookup
from vlm.core.rows.source import find_source

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "internvl2-v2pe-tiny"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside an empty home."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def is_path(param: Any) -> bool:
    return "Path" in str(param.type_descriptor.annotation)


def reaching(command: Any, name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches the function of a command for `path` as each of its options and arguments that are paths."""
    got: dict[str, Any] = {}
    words: list[str] = []
    for param in (p for p in command.params if is_path(p) or p.required):
        kind = param.type_descriptor.annotation
        other = next(iter(kind)).value if isinstance(kind, EnumMeta) else "1"
        words += param.opts[:1] if param.opts[0].startswith("-") else []
        words += [path if is_path(param) else other]
    monkeypatch.setattr(command, "callback", lambda **values: got.update(values))
    with command.make_context(name, words) as ctx:
        command.invoke(ctx)
    return {p.name: got[p.name] for p in command.params if is_path(p)}


def paths_of(values: Any) -> list[Path]:
    return list(values) if isinstance(values, list | tuple) else [values]


def test_every_path_of_every_verb_is_taken_from_the_working_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    for name, command in all_commands().items():
        if not any(map(is_path, command.params)):
            continue
        for key, values in reaching(command, name, "some/path", monkeypatch).items():
            assert paths_of(values) == [here / "some/path"], (name, key)
            tried += 1
    assert tried > 40


def test_what_is_only_below_the_home_is_read_there_and_never_written_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = here.parent / "home/some/path"
    known.mkdir(parents=True)
    written = set()
    for name, command in all_commands().items():
        if not any(map(is_path, command.params)):
            continue
        for key, values in reaching(command, name, "some/path", monkeypatch).items():
            assert paths_of(values) == [here / "some/path" if key in WRITTEN else known], (name, key)
            written |= {key} & {*WRITTEN}
    assert written == {*WRITTEN}


def test_with_the_home_as_working_directory_paths_stay_as_they_are_typed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run notes about itself then holds wherever the home is moved."""
    monkeypatch.setenv("VLM_HOME", str(here))
    command = all_commands()["data preview"]
    assert reaching(command, "preview", "some/path", monkeypatch)["out"] == Path("some/path")


def test_other_values_are_left_alone(here: Path) -> None:
    assert typed([Path("x"), "x", 3], written=True) == [here / "x", "x", 3]
    assert typed(Path("/x"), written=False) == Path("/x") and typed(None, written=True) is None
    assert typed(Path("~/x"), written=True) == Path.home() / "x"


def test_a_default_is_below_the_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = all_commands()["report"]
    got: dict[str, Any] = {}
    monkeypatch.setattr(command, "callback", lambda **values: got.update(values))
    with command.make_context("report", ["x"]) as ctx:
        command.invoke(ctx)
    assert got["out"] == Path("report/index.html") and paths_of(got["folders"]) == [here / "x"]


def test_what_is_looked_for_is_taken_from_the_working_directory_first(here: Path) -> None:
    home = here.parent / "home"
    for folder in (here, home):
        (folder / "both.csv").write_text(f"question,answer\nwhere?,{folder.name}\n")
    (home / "only.csv").write_text("question,answer\nwhere?,home\n")
    assert lookup("both.csv") == here / "both.csv" and lookup("only.csv") == home / "only.csv"
    assert lookup("neither.csv") == here / "neither.csv" and lookup(here / "x") == here / "x"
    assert lookup("x" * 5000) == here / ("x" * 5000)  # no disk can hold it
    assert find_source("both.csv").said == str(here / "both.csv")


def test_a_checkpoint_is_read_and_written_where_one_stands(here: Path) -> None:
    run("weights", "convert", str(GOLDEN), "--to", "internvl", "-o", "out")
    assert json.loads((here / "out" / "config.json").read_text())["model_type"] == "internvl_chat"
    run("weights", "convert", "out", "--to", "vlm", "-o", "again")
    assert (here / "again" / "config.json").exists() and not list((here.parent / "home").iterdir())


def run(*words: str) -> None:
    with parse(list(words)) as context:
        context.command.invoke(context)
