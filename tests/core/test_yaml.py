"""YAML from elsewhere: limits, errors with file and line, and nothing that is built or run before they hold."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.core.config import load_yaml, parse_yaml
from vlm.core.errors import ConfigError
from vlm.core.paths import as_name, is_name

BOMB = "".join(
    f"{name}: &{name} [{', '.join([before] * 9)}]\n"
    for before, name in [('"lol"', "a"), *zip([f"*{n}" for n in "abcdefgh"], "bcdefghi", strict=True)]
)

HOSTILE = {
    "aliases that stand for 9^9 values": (BOMB + "title: *i\n", "stands for more than 200,000 values"),
    "a list that contains itself": ("a: &a [*a]\n", r"\*a contains itself"),
    "a mapping that contains itself, further down": ("a: &a\n  b:\n    c: *a\n", r":3: \*a contains itself"),
    "100,000 levels": ("[" * 100_000, "more than 50 levels"),
    "100,000 levels of mappings": ("{a: " * 100_000, "more than 50 levels"),
    "a call": ('a: !!python/object/apply:os.system ["touch PWNED"]\n', "not valid YAML"),
    "an object": ("a: !!python/object/new:os.PathLike {}\n", "not valid YAML"),
    "a file that YAML would include": ("a: !include /etc/passwd\n", "not valid YAML"),
    "bytes that are no UTF-8": (b"\xff\xfe\x00", "not UTF-8"),
    "control characters": (b"a: \x00\x01\n", "not valid YAML"),
    "half a surrogate pair": ('a: "\\ud800"\n', "half a surrogate pair|invalid Unicode"),
    "a key that is nothing": ("sources:\n  ?\n", "a key is no text"),
    "a key that is a number": ("sources:\n  1: page 3\n", "the key 1 is no text; put quotes around it"),
    "a key that YAML reads as a truth": ("a:\n  on: 1\n", "the key on is no text"),
    "a key twice": ("lr: 1\nbatch: 2\nlr: 3\n", "the key lr twice"),
    "a key twice, further in": ("a:\n  lr: 1\n  lr: 3\n", "the key lr twice"),
    "a list as a key": ("? [a]\n: b\n", "a key is no text"),
    "an alias of nothing": ("a: *b\n", "not valid YAML"),
    "a date that cannot be": ("a: 2024-13-45\n", "month must be"),
    "a number of 10,000 digits": ("a: " + "9" * 10_000 + "\n", "digits"),
    "more bytes than any table": ("a: " + "x" * 5_000_000, "longer than 4,000,000 bytes"),
    "open brackets": ("a: [1, 2", "not valid YAML"),
    "a tab as indentation": ("a:\n\tb: 1\n", "not valid YAML"),
    "an escape sequence in what is wrong": ("\x1b[31ma: [", "not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_at_once_with_the_file(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, why = HOSTILE[name]
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.monotonic()
    with pytest.raises(ConfigError, match=why) as error:
        load_yaml(file)
    assert time.monotonic() - began < 20  # the first of them took all memory
    assert "recipe.yaml" in str(error.value) and "\x1b" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_pipe_a_folder_and_a_missing_file_are_named_without_waiting(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name, why in (("pipe", "is a named pipe"), ("folder", "is a folder"), ("missing", "no such file")):
        with pytest.raises(ConfigError, match=why):
            load_yaml(tmp_path / f"{name}.yaml")


def test_anchors_that_stand_for_little_are_read(tmp_path: Path) -> None:
    text = "common: &c {lr: 1.0e-3}\none: *c\ntwo: *c\nthree: {<<: *c, lr: 2}\nempty:\n"
    read = parse_yaml(text, where="x")
    assert read["one"] == read["two"] == {"lr": 0.001} and read["three"] == {"lr": 2} and read["empty"] is None
    assert parse_yaml("", where="x") is None


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text(alphabet="&*ab:[]{}, \n-?!<|>'\"%@`#0.1e", max_size=60)))
def test_whatever_the_bytes_only_a_config_error_leaves(content: bytes | str) -> None:
    try:
        parse_yaml(content, where="x")
    except ConfigError as error:
        assert str(error).startswith("x")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/x", "a\\b", ".lock", "a\nb", " a", "ü" * 101])
def test_names_that_are_paths_or_cannot_be_shown_are_no_names(name: str) -> None:
    assert not is_name(name)
    assert is_name(as_name(name))


def test_usual_names_stay_as_they_are_and_long_ones_stay_apart() -> None:
    for name in ("V2PE-32K", "模型 1.2+x", "x" * 200, "llava:7b"):
        assert is_name(name) and as_name(name) == name
    assert as_name("x" * 300) != as_name("x" * 301) and is_name(as_name("模" * 300))
