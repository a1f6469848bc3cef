"""Bad rows: each costs itself alone, and its place, its field and the reason are named; the counts close."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.foreign_rows import ASK, COLORS, columns, lines, llava, pictures, png, saved, sheet, turns
from vlm.core.errors import DataError, UnknownName
from vlm.core.rows.forms import Unfit
from vlm.core.rows.source import find_source
from vlm.core.rows.table import Table, open_table
from vlm.core.rows.write import ImportOptions, settled, write_normal

ANY = ImportOptions(max_lost=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in `images/`."""
    (tmp_path / "images").mkdir()
    for color in COLORS:
        (tmp_path / f"images/{color}.png").write_bytes(png(color))
    return tmp_path


GOOD = llava("red")


BAD_LINES: dict[str, tuple[bytes, int, str]] = {
    "NUL": (b"\0" * 40 + b"\n", 2, "unreadable: not JSON: 40 NUL bytes"),
    "GBK": (b'{"a": "\xba\xec"}\n', 2, "unreadable: not JSON: not UTF-8: byte 0xba at 7"),
    "comma behind": (json.dumps(GOOD).encode() + b",\n", 2, "the line ends with a comma"),
    "comma inside": (b'{"a": 1,}\n', 2, "unreadable: not JSON: "),
    "infinite": (b'{"a": Infinity}\n', 2, "Infinity is no JSON value"),
    "no object": (b"[1]\n", 2, "unreadable: a list, expected an object"),
    "deep": (b"[" * 100_000 + b"\n", 2, "unreadable: not JSON: nested too deeply"),
}
BAD_RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "more files": (
        {**GOOD, "image": ["images/red.png", "images/blue.png"]},
        "placeholders: 1 <image> placeholders but 2",
    ),
    "fewer files": (
        {**turns(("human", "<image><image>?"), ("gpt", "x")), "image": "images/red.png"},
        "2 <image> placeh",
    ),
    "no file": ({**GOOD, "image": None}, "placeholders: 1 <image> placeholders but 0 files"),
    "NaN as a file": ({**GOOD, "image": float("nan")}, "placeholders: 1 <image> placeholders but 0 files"),
    "empty object": ({**GOOD, "image": {}}, "path: `image` is an object without bytes, path or url"),
    "number as a file": ({**GOOD, "image": 7}, "path: `image` is a number"),
    "list in a list": ({**GOOD, "image": [["images/red.png"]]}, "path: `image` is a list"),
    "missing file": ({**GOOD, "image": "images/grey.png"}, "missing file: `image`: no file "),
    "blank in a name": ({**GOOD, "image": "images/red.png "}, "images/red.png '"),
    "long path": ({**GOOD, "image": "x/" * 5000}, "path: `image` is too long for a file's name"),
    "NUL in a path": ({**GOOD, "image": "a\0b"}, "path: `image` is a name that no file can have"),
    "out of the folder": ({**GOOD, "image": "../../etc/passwd"}, "leads out of"),
    "address": (
        {**GOOD, "image": "http://127.0.0.1:9/a.png"},
        "url: `image` is an address, which is fetched only with",
    ),
    "other address": ({**GOOD, "image": "s3://bucket/a.png"}, "path: `image` is a URL (s3)"),
    "broken base64": ({**GOOD, "image": "data:image/png;base64,@@"}, "base64: `image` is broken base64"),
    "no comma": ({**GOOD, "image": "data:image/png;base64"}, "base64: `image` is a data URL without a comma"),
    "no picture": ({**GOOD, "image": "data:text/html;base64,PGh0bWw+"}, "media: `image`: the bytes is a web page"),
    "tool role": (
        {"messages": [{"role": "user", "content": "?"}, {"role": "tool", "content": "1"}]},
        "tool role: `messages` 1",
    ),
    "tool call": (
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "tool role: `messages` 1 calls a tool",
    ),
    "unknown role": (turns(("narrator", "x"), ("gpt", "y")), "turns: `conversations` 0 is from 'narrator'"),
    "nobody": ({"messages": [{"content": "x"}]}, "turns: `messages` 0 names nobody"),
    "two questions": (turns(("human", "a"), ("human", "b"), ("gpt", "c")), "turns: turn 1 is from 'human'"),
    "system later": (turns(("human", "a"), ("system", "b"), ("gpt", "c")), "turns: turn 1 is from 'system'"),
    "reply with the picture first": (
        {**turns(("gpt", "<image>"), ("human", "a"), ("gpt", "c")), "image": "images/red.png"},
        "turn 0, which is left out, holds a placeholder",
    ),
    "only a reply": (turns(("gpt", "a")), "turns: no question"),
    "no reply": (turns(("human", "a")), "no answer: no answer to learn"),
    "empty reply": (turns(("human", "a"), ("gpt", " ")), "empty answer: turn 1 (gpt) has no text"),
    "null reply": (turns(("human", "a"), ("gpt", None)), "empty answer: turn 1 (gpt) has no text"),
    "number as a reply": (turns(("human", "a"), ("gpt", 7)), "turns: turn 1: `value` is a number, not a text"),
    "list as a reply": (turns(("human", "a"), ("gpt", ["x"])), "turns: turn 1: `value` is a list, not a text"),
    "cut emoji": (turns(("human", "a"), ("gpt", "\ud83d")), "turns: turn 1 holds half of a surrogate pair"),
    "turns are a text": ({"conversations": "hi"}, "turns: `conversations` is a text, expected a list of turns"),
    "turn is a text": ({"messages": ["hi"]}, "turns: `messages` 0 is a text, not an object"),
    "sound": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "a part of type 'input_audio'"),
    "no question": ({"image": "images/red.png", "caption": "red"}, "form: no question: the columns are image, caption"),
    "no answer": (
        {"image": "images/red.png", "question": "?"},
        "empty answer: no answer: the columns with a value are",
    ),
    "empty cell": ({"image": "images/red.png", "question": "?", "answer": ""}, "empty answer: no answer"),
    "answer is true": ({"question": "?", "answer": True}, "turns: `answer` is true or false, expected a text"),
    "option too far": ({"question": "?", "options": ["a"], "answer": 3}, "answer 3 beside 1 options"),
    "no known key": ({"foo": 1}, "form: no question: the columns are foo; expected `conversations`, `messages`"),
    "empty object as a record": ({}, "form: no question: the columns are nothing"),
}


def refused(table: Table, out: Path) -> dict[str, Any]:
    """Import a table of which all or some rows are bad; return its ledger: place -> reason. The counts close."""
    done = write_normal(table, out, ANY)
    entries = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert done["read"] == done["written"] + len(entries) == done["written"] + sum(done["refused"].values())
    assert len((out / "records.jsonl").read_text().splitlines()) == done["written"]
    return {entry["id"]: entry["reason"] for entry in entries}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_costs_itself_and_names_file_line_and_reason(folder: Path, kind: str) -> None:
    bad, line, why = BAD_LINES[kind]
    (folder / "a.jsonl").write_bytes(lines([GOOD]) + bad + lines([GOOD]))
    [(place, reason)] = refused(open_table(folder / "a.jsonl"), folder / "out").items()
    assert place == f"{folder / 'a.jsonl'}:{line}" and why in reason, reason


@pytest.mark.parametrize("wrap", ["JSON lines", "JSON list"])
@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_costs_itself_and_names_field_and_reason(folder: Path, kind: str, wrap: str) -> None:
    bad, why = BAD_RECORDS[kind]
    path = folder / ("a.jsonl" if wrap == "JSON lines" else "a.json")
    path.write_bytes(lines([GOOD, bad]) if wrap == "JSON lines" else json.dumps([GOOD, bad], indent=1).encode())
    [(place, reason)] = refused(open_table(path), folder / "out").items()
    assert place.startswith(f"{path}:") and why in reason and len(reason) < 600, reason
    number = int(place.rpartition(":")[2])
    assert number == 2 if wrap == "JSON lines" else path.read_text().splitlines()[number - 1].strip()[0] == "{"


COLUMN_KINDS = (
    "missing file",
    "blank in a name",
    "long path",
    "out of the folder",
    "address",
    "broken base64",
    "empty cell",
)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("kind", COLUMN_KINDS)
def test_a_bad_row_of_a_table_costs_itself(folder: Path, kind: str, name: str) -> None:
    bad, why = BAD_RECORDS[kind]
    row = {"image": bad["image"], "question": ASK, "answer": bad.get("answer", "red")}
    rows = [columns("red"), row, columns("blue")]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text(sheet(rows, "\t" if name == "a.tsv" else ","))
    [(place, reason)] = refused(open_table(folder / name), folder / "out").items()
    assert place == (f"{folder / name} row 2" if name == "a.parquet" else f"{folder / name}:3") and why in reason, (
        reason
    )


@pytest.mark.parametrize(
    ("text", "places", "why"),
    [
        (b"image,question,answer\r\nimages/red.png,a,b\r\nimages/red.png,a,b,c\r\n", [3], "4 cells, expected 3"),
        (b"image,question,answer\nimages/red.png,a\n", [2], "2 cells, expected 3 as in the header"),
        (b'image,question,answer\nimages/red.png,"a\nb",c\nimages/red.png,a\n', [4], "2 cells, expected 3"),
        (b'image,question,answer\nimages/red.png,a,b\nimages/red.png,"a,b\n', [3], "is a quotation mark missing?"),
        (b"image,question,answer\nimages/red.png,\xba\xec,b\n", [2], "column question: not UTF-8: byte 0xba at 0"),
        (b"image,question,answer\nimages/red.png,a\0,b\n", [2], "column question: 1 NUL bytes"),
        (b"a.png,what,red\nb.png,what,blue\n", [2], "form: no question: the columns are a.png, what, red"),
    ],
)
def test_a_bad_cell_names_its_line_and_its_column(folder: Path, text: bytes, places: list[int], why: str) -> None:
    (folder / "a.csv").write_bytes(text)
    rows = list(open_table(folder / "a.csv").rows())
    found = {}
    for row in rows:
        try:
            settled(row, ANY)
        except Unfit as fault:
            found[int(row.where.rpartition(":")[2])] = f"{fault.kind}: {fault}"
    assert list(found) == places and all(why in reason for reason in found.values()), found


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        (json.dumps([GOOD])[:-1] + ",]", 1, "a comma behind the last record"),
        (json.dumps([GOOD])[:-1], 1, "the list does not end"),
        (json.dumps([GOOD])[:-1] + ",", 1, "the list does not end: the file is cut"),
        (f"[{json.dumps(GOOD)}\n{json.dumps(GOOD)}]", 2, "no comma between two records"),
        (json.dumps([GOOD]) + "\n[]", 2, "more text behind the end of the list"),
        (f'[{json.dumps(GOOD)},\n{{"a": 1,}}]', 2, "not JSON"),
        (f'[{json.dumps(GOOD)},\n{{"a": "b]', 2, "Unterminated string"),
    ],
)
def test_a_damaged_list_gives_what_is_in_front_and_names_the_line(
    folder: Path, content: str, line: int, why: str
) -> None:
    (folder / "a.json").write_text(content)
    *good, bad = open_table(folder / "a.json").rows()
    assert all(row.fault is None for row in good) and good
    assert bad.where == f"{folder / 'a.json'}:{line}" and why in (bad.fault or "") and "nothing behind it" in bad.fault


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", b"", "is empty"),
        ("a.jsonl", b"\r\n \n", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.json", b'{\n"data": []}', "is one JSON object"),
        ("a.xlsx", b"PK\x03\x04", "is a spreadsheet"),
        ("a.zip", b"PK\x03\x04", "is a zip archive"),
        ("a.jsonl", b"\x1f\x8b\x08", r"is compressed \(gzip\)"),
        ("a.txt", b"hello", "of no format that is known"),
        ("a.csv", b"image,image,answer\n", "two columns are named image"),
    ],
)
def test_a_file_of_no_rows_says_what_it_is(folder: Path, name: str, content: bytes, why: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        write_normal(open_table(folder / name), folder / "out")


@pytest.mark.parametrize("cut", [5, 200])
@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_a_damaged_binary_table_ends_with_its_name(folder: Path, name: str, cut: int) -> None:
    path = folder / name
    if name == "saved":
        saved(path, pictures())
        path = path / "data-00000-of-00002.arrow"
    else:
        pq.write_table(pictures(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=path.name):
        write_normal(open_table(folder / name), folder / "out")


def test_folders_that_name_no_rows_say_so(folder: Path) -> None:
    with pytest.raises(DataError, match="no file of rows in"):
        open_table(folder)
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_text(sheet([columns("red")]))
    assert open_table(folder).split == "train"
    with pytest.raises(UnknownName, match="unknown split 'tset'"):
        open_table(folder, "tset")
    (folder / "train.csv").rename(folder / "test.csv")
    with pytest.raises(DataError, match="has the splits dev, test"):
        open_table(folder)
    assert find_source(f"{folder}:test").table.files == (folder / "test.csv",)
    (folder / "odd").mkdir()
    (folder / "odd/dataset_dict.json").write_text('{"splits": ["../../etc"]}')
    with pytest.raises(DataError, match="names no splits"):
        open_table(folder / "odd")
