"""Which records can be used, what becomes of them, and that nothing but our error leaves one."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.core.errors import DataError, VlmError
from vlm.core.sample.lines import parse_line
from vlm.core.sample.records import examine, read_record

ROOT = Path("set")


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def content(sample):
    return [(m["role"], [part.get("text", part.get("path")) for part in m["content"]]) for m in sample.messages]


def test_a_system_text_beside_the_turns_is_used():
    for key in ("system", "system_prompt"):
        sample = read_record({"id": 1, key: "Be brief.", "conversations": turns("Q", "A")}, root=ROOT)
        assert content(sample) == [("system", ["Be brief."]), ("user", ["Q"]), ("assistant", ["A"])]
    for empty in ("", None):
        assert len(read_record({"system": empty, "conversations": turns("Q", "A")}, root=ROOT).messages) == 2


def test_two_system_texts_are_an_error_unless_they_are_the_same():
    talk = [{"from": "system", "value": "Be brief."}, *turns("Q", "A")]
    assert len(read_record({"system": "Be brief.", "conversations": talk}, root=ROOT).messages) == 3
    with pytest.raises(DataError, match="two different system texts"):
        read_record({"system": "Be long.", "conversations": talk}, root=ROOT)


@pytest.mark.parametrize(("loss", "learned"), [(0, False), (False, False), (1, True), (True, True), (None, True)])
def test_the_loss_of_an_answer_is_honoured(loss, learned):
    talk = turns("Q", "A", "Q", "B")
    talk[1]["loss"] = loss
    messages = read_record({"conversations": talk}, root=ROOT).messages
    assert [message.get("learn", True) for message in messages] == [True, learned, True, True]


def test_several_videos_have_a_placeholder_each():
    record = {"video": ["a.mp4", "b.mp4"], "conversations": turns("<video> or <video>?", "A")}
    assert content(read_record(record, root=ROOT))[0] == ("user", ["set/a.mp4", " or ", "set/b.mp4", "?"])
    one = {"video": ["a.mp4"], "clip": [1, 2.5], "conversations": turns("Q", "A")}
    assert read_record(one, root=ROOT).media == [{"type": "video", "path": "set/a.mp4", "clip": (1, 2.5)}]
    with pytest.raises(DataError, match="beside 2 videos"):
        read_record({**record, "clip": [0, 1]}, root=ROOT)


def test_an_error_names_the_place_and_every_reason_and_never_the_whole_value():
    blob = "data:image/png;base64," + "A" * 50_000
    record = {"image": [blob, "https://host/a.png", ""], "images": ["a"], "conversations": turns("<image>", 7)}
    with pytest.raises(DataError) as error:
        read_record(record, root=ROOT, where="train.jsonl:7")
    said = str(error.value)
    for part in ("train.jsonl:7: ", "turn 1: `value` is a number", "`images` is not read", "base64", "URL", "empty"):
        assert part in said
    assert len(said) < 1000


@pytest.mark.parametrize("key", ["images", "videos"])
def test_files_under_a_key_that_nothing_reads_are_no_text_sample(key):
    with pytest.raises(DataError, match=f"`{key}` is not read; the key is `{key[:-1]}`"):
        read_record({key: ["a.png"], "conversations": turns("What is it?", "A cat.")}, root=ROOT)


def test_other_forms_are_named_with_what_to_do():
    messages = {"messages": [{"role": "user", "content": "Q"}]}
    with pytest.raises(DataError, match="`messages` is another form, which `vlm data import` reads"):
        read_record(messages, root=ROOT)
    with pytest.raises(DataError, match="turn 0: from 'user', expected human, gpt or system"):
        read_record({"conversations": [{"from": "user", "value": "Q"}]}, root=ROOT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.lists(st.sampled_from(["<image>", "<video>", "\ud83d", "a", " ", "\0", "图"]), max_size=4).map("".join)
TURN = st.fixed_dictionaries(
    {}, optional={"from": st.sampled_from(["human", "gpt", "system"]) | JSON, "value": TEXT | JSON, "loss": JSON}
)
NAME = st.sampled_from(["a.png", "", "b/" * 3000, "http://x/y", "data:,", "\0", "../a"]) | JSON
RECORD = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "conversations": st.lists(TURN | JSON, max_size=4) | st.just(turns("<image>", "A")) | JSON,
        "image": NAME | st.lists(NAME, max_size=2),
        "video": NAME | st.lists(NAME, max_size=2),
        "clip": JSON | st.lists(st.floats() | st.integers(), min_size=2, max_size=2),
        "images": JSON,
        "system": JSON,
    },
)


@settings(deadline=None, max_examples=300)
@given(RECORD | JSON)
def test_any_json_is_a_sample_or_an_error_with_a_reason(record):
    found = examine(record, root=ROOT, where="f:1")
    assert (found.sample is None) == bool(found.fatal)
    try:
        sample = read_record(record, root=ROOT, where="f:1")
    except DataError as error:
        assert found.sample is None and error.found.startswith("f:1: ") and len(error.found) > 5
        assert str(error).isprintable() or "\n" in str(error)
        str(error).encode()
    else:
        assert sample == found.sample
        files = [part for message in sample.messages for part in message["content"] if part["type"] != "text"]
        assert (
            len(files) == len(found.files)
            and next(m["role"] for m in sample.messages if m["role"] != "system") == "user"
        )


@settings(deadline=None)
@given(st.binary(max_size=40) | RECORD.map(lambda r: json.dumps(r).encode()))
def test_any_bytes_are_json_or_an_error_that_names_the_line(raw):
    try:
        parse_line(raw, "f:1")
    except VlmError as error:
        assert isinstance(error, DataError) and error.found.startswith("f:1: not ")
