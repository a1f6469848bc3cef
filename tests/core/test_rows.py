"""Rows that other programs wrote: each format and each form gives the same records; each fault names its place."""

import base64
import csv
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.media_root import MediaRoot
from vlm.core.rows.forms import Unfit, normal
from vlm.core.rows.media import MediaStore
from vlm.core.rows.source import find_source
from vlm.core.rows.table import Table, open_table
from vlm.core.rows.write import ImportOptions, settled, write_normal
from vlm.core.sample.records import read_record

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402  # behind the skip

COLORS = ("red", "green", "blue")
ASK = "What color is it?"
ANY = ImportOptions(max_lost=1.0)


def png(color: str) -> bytes:
    """A picture of one color."""
    file = io.BytesIO()
    Image.new("RGB", (24, 16), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in `images/`."""
    (tmp_path / "images").mkdir()
    for color in COLORS:
        (tmp_path / f"images/{color}.png").write_bytes(png(color))
    return tmp_path


def llava(color: str, image: Any = None) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{ASK}"}, {"from": "gpt", "value": color}]
    return {"id": color, "image": image or f"images/{color}.png", "conversations": turns}


def columns(color: str) -> dict[str, Any]:
    return {"image": f"images/{color}.png", "question": ASK, "answer": color}


def data_url(color: str) -> str:
    return "data:image/png;base64," + base64.b64encode(png(color)).decode()


def lines(rows: list[Any], **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def sheet(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def pictures() -> Any:
    """Rows as `datasets` writes an image column: bytes and a path beside each other."""
    rows = [{"image": {"bytes": png(c), "path": None}, "question": ASK, "answer": c} for c in COLORS]
    return pa.Table.from_pylist(rows)


def saved(folder: Path, table: Any) -> None:
    """Write a folder as `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    for number in (0, 1):
        name = f"data-0000{number}-of-00002.arrow"
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.slice(0, 2) if number == 0 else table.slice(2))
    names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_format_type": None}))
    (folder / "dataset_info.json").write_text("{}")


FORMATS: dict[str, Any] = {
    "list.json": json.dumps([llava(c) for c in COLORS], indent=2).encode(),
    "compact.json": json.dumps([llava(c) for c in COLORS]).encode(),
    "lines.jsonl": lines([llava(c) for c in COLORS]),
    "lines.json": lines([llava(c) for c in COLORS]),
    "bom.jsonl": b"\xef\xbb\xbf" + lines([llava(c) for c in COLORS]),
    "crlf.jsonl": lines([llava(c) for c in COLORS]).replace(b"\n", b"\r\n") + b"\r\n\r\n",
    "utf16.jsonl": lines([llava(c) for c in COLORS]).decode().encode("utf-16"),
    "utf16-no-mark.json": json.dumps([llava(c) for c in COLORS]).encode("utf-16-le"),
    "bom.json": b"\xef\xbb\xbf" + json.dumps([llava(c) for c in COLORS]).encode(),
    "columns.csv": sheet([columns(c) for c in COLORS]).encode(),
    "semicolon.csv": sheet([columns(c) for c in COLORS], ";").encode("utf-8-sig"),
    "excel.csv": sheet([columns(c) for c in COLORS], "\t").encode("utf-16"),
    "crlf.tsv": sheet([columns(c) for c in COLORS], "\t").encode(),
    "names.csv": sheet([{"Image Path": f"images/{c}.png", "Question": ASK, "ANSWER": c} for c in COLORS]).encode(),
}


def check(table: Table, out: Path, options: ImportOptions | None = None) -> dict[str, Any]:
    """Write a table and compare what training would read with the three pictures."""
    done = write_normal(table, out, options)
    assert (done["read"], done["written"], done["refused"]) == (3, 3, {})
    for line, color in zip((out / "records.jsonl").read_text().splitlines(), COLORS, strict=True):
        sample = read_record(json.loads(line), root=out)
        with Image.open(sample.media[0]["path"]) as picture:
            assert picture.convert("RGB").getpixel((3, 3)) == Image.new("RGB", (1, 1), color).getpixel((0, 0))
        texts = [part["text"] for m in sample.messages for part in m["content"] if part["type"] == "text"]
        assert [text.strip() for text in texts if text.strip()] == [ASK, color]
    return done


@pytest.mark.parametrize("name", FORMATS)
def test_every_text_format_gives_the_same_records(folder: Path, name: str) -> None:
    (folder / name).write_bytes(FORMATS[name])
    table = open_table(folder / name)
    assert table.count() == 3
    check(table, folder / "out")


def test_parquet_and_folders_of_datasets_give_the_same_records(folder: Path) -> None:
    pq.write_table(pictures(), folder / "a.parquet")
    check(open_table(folder / "a.parquet"), folder / "out")
    hub = folder / "hub/data"
    hub.mkdir(parents=True)
    (folder / "hub/README.md").write_text("a set")
    for split in ("train", "test"):
        pq.write_table(pictures(), hub / f"{split}-00000-of-00001.parquet")
    assert open_table(folder / "hub").splits == ("test", "train")
    check(open_table(folder / "hub"), folder / "out-hub")
    assert open_table(folder / "hub", "test").files == (hub / "test-00000-of-00001.parquet",)
    saved(folder / "saved", pictures())
    check(open_table(folder / "saved"), folder / "out-saved")
    saved(folder / "dict/train", pictures())
    (folder / "dict/dataset_dict.json").write_text('{"splits": ["train"]}')
    check(open_table(folder / "dict"), folder / "out-dict")
    assert open_table(folder / "dict").count() == 3


def test_a_folder_of_pictures_with_its_table_is_read_from_there(folder: Path) -> None:
    rows = [{"file_name": f"{color}.png", "text": color} for color in COLORS]
    (folder / "images/metadata.csv").write_text(sheet(rows))
    check(open_table(folder / "images"), folder / "out", ImportOptions(question=ASK))


def messages(color: str, *parts: Any, **more: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": ASK}] if parts else f"<image>{ASK}"
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": color}], **more}


def url_part(color: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(color)}}


FORMS: dict[str, Any] = {
    "OpenAI messages": lambda c: messages(c, url_part(c)),
    "OpenAI messages, url alone": lambda c: messages(c, {"type": "image_url", "image_url": data_url(c)}),
    "input_image": lambda c: messages(c, {"type": "input_image", "image_url": data_url(c)}),
    "HF messages, image part": lambda c: messages(c, {"type": "image", "image": f"images/{c}.png"}),
    "HF messages, path part": lambda c: messages(c, {"type": "image", "path": f"images/{c}.png"}),
    "HF messages, column": lambda c: messages(c, {"type": "image"}, images=[f"images/{c}.png"]),
    "HF messages, nulls": lambda c: messages(c, {"type": "image", "text": None}, images=[{"path": f"images/{c}.png"}]),
    "ms-swift": lambda c: messages(c, images=[f"images/{c}.png"]),
    "ms-swift, text": lambda c: messages(c, images=f"images/{c}.png"),
    "ms-swift query": lambda c: {"query": ASK, "response": c, "images": [f"images/{c}.png"]},
    "LLaVA, images": lambda c: {**llava(c), "image": None, "images": [f"images/{c}.png"]},
    "LLaVA, base64": lambda c: llava(c, base64.b64encode(png(c)).decode()),
    "ShareGPT": lambda c: {
        "image": f"images/{c}.png",
        "conversations": [{"from": "user", "value": f"<image>{ASK}"}, {"from": "assistant", "value": c}],
    },
    "ShareGPT, role": lambda c: {
        "images": [f"images/{c}.png"],
        "conversations": [{"role": "user", "content": f"<image>{ASK}"}, {"role": "assistant", "content": c}],
    },
    "Cauldron": lambda c: {"images": [f"images/{c}.png"], "texts": [{"user": ASK, "assistant": c, "source": "x"}]},
    "prompt and completion": lambda c: {
        "images": [f"images/{c}.png"],
        "prompt": [{"role": "user", "content": f"<image>{ASK}"}],
        "completion": [{"role": "assistant", "content": c}],
    },
    "instruction": lambda c: {"image": f"images/{c}.png", "instruction": ASK, "input": "", "output": c},
    "several answers": lambda c: {"image": f"images/{c}.png", "question": ASK, "answers": ["x", c, c]},
    "backslashes": lambda c: {"image": f"images\\{c}.png", "question": ASK, "answer": c},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_records(folder: Path, form: str) -> None:
    (folder / "a.jsonl").write_bytes(lines([FORMS[form](color) for color in COLORS]))
    check(open_table(folder / "a.jsonl"), folder / "out")


def test_roles_system_text_and_weights_are_kept_where_training_honors_them() -> None:
    turns = [("developer", "Be brief."), ("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two")]
    said = [{"role": role, "content": text} for role, text in turns]
    said[2]["weight"] = 0  # type: ignore[assignment]  # as OpenAI's fine-tuning takes it
    sample = read_record(normal({"messages": said}).record, root=Path())
    assert [m["role"] for m in sample.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.get("learn", True) for m in sample.messages] == [True, True, False, True, True]
    beside = normal({"system": "Be brief.", "query": "1?", "response": "one", "history": [["0?", "zero"]]})
    assert [turn["value"] for turn in beside.record["conversations"]] == ["0?", "zero", "1?", "one"]
    assert beside.record["system"] == "Be brief." and not beside.unread


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"options": ["cat", "dog"], "answer": 1}, "B"),
        ({"options": '["cat", "dog"]', "answer": "B"}, "B"),
        ({"choices": {"A": "cat", "B": "dog"}, "answer": "B"}, "B"),
        ({"A": "cat", "B": "dog", "answer": "B"}, "B"),
    ],
)
def test_options_stand_below_the_question(row: dict[str, Any], answer: str) -> None:
    turns = normal({"question": "Which?", **row}).record["conversations"]
    assert [turn["value"] for turn in turns] == ["Which?\nA. cat\nB. dog", answer]


def test_an_answer_that_looks_like_json_stays_text(folder: Path) -> None:
    (folder / "a.csv").write_text(sheet([{"question": "[1]?", "answer": '{"color": "red"}'}]))
    [(_, row)] = open_table(folder / "a.csv").values()
    assert [turn["value"] for turn in normal(row).record["conversations"]] == ["[1]?", '{"color": "red"}']


GOOD = llava("red")
TURNS = GOOD["conversations"]


def turns(*said: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": value} for who, value in said]}


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


def test_memory_does_not_grow_with_a_json_list(tmp_path: Path) -> None:
    def peak(records: int) -> int:
        path = tmp_path / f"{records}.json"
        with path.open("w") as file:
            file.write(
                "[" + ",\n".join(json.dumps(turns(("human", "a" * 2000), ("gpt", "b"))) for _ in range(records)) + "]"
            )
        tracemalloc.start()
        assert open_table(path).count() == records
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(1500), peak(12_000)
    assert large < 1.5 * small


def test_an_import_goes_on_after_a_kill_and_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.core.rows.write.SAVED", 4)
    rows = [llava(COLORS[i % 3]) | {"id": i} for i in range(20)]
    rows[3]["image"] = "images/grey.png"
    (folder / "a.jsonl").write_bytes(lines(rows))
    table = open_table(folder / "a.jsonl")
    whole = write_normal(table, folder / "whole", ANY)
    place, calls = MediaStore.place, []

    def killed(self: MediaStore, value: Any, key: Any) -> str:
        calls.append(value)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return place(self, value, key)

    monkeypatch.setattr(MediaStore, "place", killed)
    with pytest.raises(KeyboardInterrupt):
        write_normal(table, folder / "out", ANY)
    assert not (folder / "out/manifest.json").exists() and not (folder / "out/records.jsonl").exists()
    assert write_normal(table, folder / "out", ANY) == whole
    assert len(calls) < 11 + 20
    for name in ("records.jsonl", "ledger.jsonl"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    before = len(calls)
    assert write_normal(table, folder / "out", ANY) == whole and len(calls) == before
    assert not (folder / "out/.partial").exists()


def test_an_import_replaces_nothing_of_others(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines([GOOD]))
    (folder / "out").mkdir()
    (folder / "out/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        write_normal(open_table(folder / "a.jsonl"), folder / "out")
    assert [path.name for path in (folder / "out").iterdir()] == ["mine.txt"]


def test_too_many_bad_rows_are_an_error_that_lists_them_and_its_fix_works(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines([GOOD, BAD_RECORDS["empty reply"][0]]))
    with pytest.raises(DataError, match=r"1 of 2 rows .* cannot be used \(empty answer 1\)(.|\n)*--max-lost 0.5"):
        write_normal(open_table(folder / "a.jsonl"), folder / "out")
    assert write_normal(open_table(folder / "a.jsonl"), folder / "out", ImportOptions(max_lost=0.5))["written"] == 1
    assert open_table(folder / "out").count() == 1  # what an import wrote is data again


def test_pictures_are_there_once_and_the_same_ids_are_counted(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines([GOOD, GOOD, {**GOOD, "image": data_url("red"), "id": None}]))
    done = write_normal(open_table(folder / "a.jsonl"), folder / "out")
    assert len(list((folder / "out/images").rglob("*.png"))) == 1 and done["same_id"] == 1


@pytest.mark.parametrize(
    "name", ["a b.png", "100%.png", "a#1.png", "x?y.png", "[red].png", "-dash.png", "ü😀.png", "q'\".png"]
)
def test_odd_names_of_files_are_read(folder: Path, name: str) -> None:
    (folder / "images" / name).write_bytes(png("red"))
    (folder / "a.csv").write_text(sheet([{"image": f"images/{name}", "question": ASK, "answer": "red"}]))
    assert write_normal(open_table(folder / "a.csv"), folder / "out")["written"] == 1


def test_a_file_outside_needs_its_switch(folder: Path) -> None:
    (folder / "set").mkdir()
    (folder / "set/a.jsonl").write_bytes(lines([{**GOOD, "image": f"file://{folder}/images/red.png"}]))
    table = open_table(folder / "set/a.jsonl")
    with pytest.raises(DataError, match="leads out of"):
        write_normal(table, folder / "out")
    assert write_normal(table, folder / "out", ImportOptions(outside=(folder / "images",)))["written"] == 1
    assert write_normal(table, folder / "out2", ImportOptions(root=folder))["written"] == 1


def test_a_store_never_reads_what_is_no_file(folder: Path) -> None:
    with pytest.raises(Unfit, match="is a folder"):
        MediaStore(folder / "out", MediaRoot(folder)).place("images", "image")
