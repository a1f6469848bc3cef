"""Rows that other programs wrote: each format and each form gives the same records, and an import closes."""

import base64
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.foreign_rows import ASK, COLORS, columns, data_url, lines, llava, pictures, png, saved, sheet, turns
from vlm.core.errors import ConfigError, DataError
from vlm.core.media_root import MediaRoot
from vlm.core.rows.forms import Unfit, normal
from vlm.core.rows.media import MediaStore
from vlm.core.rows.table import Table, open_table
from vlm.core.rows.write import ImportOptions, write_normal
from vlm.core.sample.records import read_record

ANY = ImportOptions(max_lost=1.0)
GOOD = llava("red")
EMPTY = turns(("human", "a"), ("gpt", " "))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in `images/`."""
    (tmp_path / "images").mkdir()
    for color in COLORS:
        (tmp_path / f"images/{color}.png").write_bytes(png(color))
    return tmp_path


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
    (folder / "a.jsonl").write_bytes(lines([GOOD, EMPTY]))
    with pytest.raises(DataError, match=r"1 of 2 rows .* cannot be used \(empty answer 1\)(.|\n)*--max-lost of 0.5"):
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
