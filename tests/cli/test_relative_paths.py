"""A relative path that is typed means the working directory, in every verb, wherever the home is."""

import importlib
import json
from enum import EnumMeta
from pathlib import Path
from typing import Any

import pytest
import typer

from support.command_line import parse
from vlm.cli.main import VERBS, absolute, from_here
from vlm.core.home import lookup


def leaves(command: Any, name: str) -> list[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    return [leaf for key, part in below.items() for leaf in leaves(part, f"{name} {key}")] or [(name, command)]


def all_commands() -> list[tuple[str, Any]]:
    found = []
    for name in VERBS:
        command = typer.main.get_command(importlib.import_module(f"vlm.cli.commands.{name}").app)
        from_here(command)
        found += leaves(command, name)
    return found


def run(*words: str) -> None:
    with parse(list(words)) as context:
        context.command.invoke(context)


def test_every_path_of_every_verb_is_taken_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches the function of each command, for all of its options and arguments that are paths."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tried = 0
    for name, command in all_commands():
        got: dict[str, Any] = {}
        command.callback = lambda got=got, **values: got.update(values)
        paths = [p for p in command.params if "Path" in str(p.type_descriptor.annotation)]
        if not paths:
            continue
        words: list[str] = []
        for param in (p for p in command.params if p in paths or p.required):
            kind = param.type_descriptor.annotation
            other = next(iter(kind)).value if isinstance(kind, EnumMeta) else "1"
            words += param.opts[:1] if param.opts[0].startswith("-") else []
            words += ["some/path" if param in paths else other]
        with command.make_context(name, words) as ctx:
            command.invoke(ctx)
        for param in paths:
            values = got[param.name] if isinstance(got[param.name], list | tuple) else [got[param.name]]
            assert values == [tmp_path / "here/some/path"], (name, param.name)
            tried += 1
    assert tried > 40


def test_defaults_and_recipes_stay_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "a.txt").write_text("a")
    (tmp_path / "home" / "b.txt").write_text("b")
    assert lookup("a.txt") == tmp_path / "here/a.txt" and lookup("b.txt") == tmp_path / "home/b.txt"
    assert lookup(tmp_path / "x") == tmp_path / "x"
    assert absolute([Path("x"), "x", 3]) == [tmp_path / "here/x", "x", 3] and absolute(Path("/x")) == Path("/x")


def test_a_checkpoint_is_read_and_written_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    source = Path(__file__).parents[1] / "golden" / "data" / "internvl2-v2pe-tiny"
    run("weights", "convert", str(source), "--to", "internvl", "-o", "out")
    assert json.loads((here / "out" / "config.json").read_text())["model_type"] == "internvl_chat"
    run("weights", "convert", "out", "--to", "vlm", "-o", "again")
    assert (here / "again" / "config.json").exists() and not list((tmp_path / "home").iterdir())
