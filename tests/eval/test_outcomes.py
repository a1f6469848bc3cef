"""The outcome log survives torn lines; keys follow content; everything unreadable is reported."""

import json

import pytest

from vlm.core.errors import DataError
from vlm.eval.keys import content_key, file_hash
from vlm.eval.run.outcomes import Outcome, OutcomeLog, read_outcomes
from vlm.eval.run.results import scorer_hash

A = Outcome("a", "id1", "ok", "yes")
B = Outcome("b", "id2", "truncated", "größer\nthan")
C = Outcome("c", "id3", "oom", detail="out of memory when run alone")


def write(path, *outcomes):
    with OutcomeLog(path) as log:
        log.append(outcomes)


def test_what_is_appended_is_read_back(tmp_path):
    write(tmp_path / "log", A, B)
    write(tmp_path / "log", C)
    assert read_outcomes([tmp_path / "log"]) == {"a": A, "b": B, "c": C}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_lost_alone_and_the_log_goes_on(tmp_path, cut):
    path = tmp_path / "log"
    write(path, A, B)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_outcomes([path]) == {"a": A}
    write(path, C)
    assert read_outcomes([path]) == {"a": A, "c": C}


def test_damage_in_the_middle_names_file_and_line(tmp_path):
    path = tmp_path / "log"
    write(path, A, B)
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(DataError, match="log:1"):
        read_outcomes([path])


def test_an_answer_wins_over_a_failure_in_any_order(tmp_path):
    failed = Outcome("a", "id1", "error", detail="ValueError: x")
    write(tmp_path / "1", A)
    write(tmp_path / "2", failed)
    for order in (["1", "2"], ["2", "1"]):
        assert read_outcomes([tmp_path / name for name in order]) == {"a": A}


def test_an_empty_answer_is_an_answer_and_a_failure_is_not():
    assert Outcome("a", "id", "ok", "").answered
    assert not C.answered


def test_keys_depend_on_every_part_and_not_on_their_order():
    key = content_key(weights="w", prompt="p", decode={"x": 1, "y": 2})
    assert key == content_key(decode={"y": 2, "x": 1}, prompt="p", weights="w")
    assert key != content_key(weights="w", prompt="p", decode={"x": 1, "y": 3})


def test_file_hash_is_of_the_content(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_hash(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "1.jpg").write_bytes(b"1")
    assert file_hash(str(frames)) not in (a, c, "missing")
    assert file_hash(str(tmp_path / "none")) == "missing"


def test_the_log_is_plain_jsonl(tmp_path):
    write(tmp_path / "log", A)
    assert json.loads((tmp_path / "log").read_text())["outcome"] == "ok"


def test_the_scorer_hash_is_a_digest():
    assert len(scorer_hash()) == 64
