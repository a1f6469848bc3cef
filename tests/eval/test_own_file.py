"""A person's own file as a benchmark: every form of rows, columns and cells, and what is said of those that are bad."""

import base64
import json
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.rows.forms import Unfit
from vlm.eval.benchmark import Benchmark, load_benchmark, tables
from vlm.eval.loaders import load_items
from vlm.eval.loaders.cells import gold_for, read_options
from vlm.eval.loaders.rows import open_questions
from vlm.eval.own import describe, edition_of, is_file_word, table_of_file
from vlm.eval.scorers import SCORERS

ROWS = [{"image": f"img/{name}.png", "question": "What color?", "answer": name} for name in ("red", "blue")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    (tmp_path / "img").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / "img" / f"{name}.png")
    return tmp_path


def png(color: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def items_of(path: Path, **settings):
    table = table_of_file(path, **settings)
    return load_items(table, path)


def asked(item) -> str:
    return "".join(part["text"] for part in item.messages[-1]["content"] if part["type"] == "text")


CSV = "Image Path;Question;Answer\nimg/red.png;What color?;red\nimg/blue.png;What color?;blue\n"

TEXTS = {
    "own.jsonl": lines(ROWS).encode(),
    "own.json": json.dumps(ROWS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS).encode(),
    "crlf.jsonl": lines(ROWS).replace("\n", "\r\n").encode(),
    "utf16.jsonl": lines(ROWS).encode("utf-16"),
    "semicolons.csv": CSV.encode(),
    "excel.csv": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(),
    "utf16.csv": CSV.encode("utf-16"),
    "tabs.tsv": CSV.replace(";", "\t").encode(),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_tables_of_every_kind_give_the_same_questions(name: str, folder: Path) -> None:
    (folder / name).write_bytes(TEXTS[name])
    items = items_of(folder / name)
    assert [(item.id, item.gold, asked(item)) for item in items] == [
        ("row 1", "red", "\nWhat color?"),
        ("row 2", "blue", "\nWhat color?"),
    ]
    assert [item.messages[0]["content"][0]["path"] for item in items] == [
        str(folder / "img" / f"{color}.png") for color in ("red", "blue")
    ]


def arrow_rows() -> pa.Table:
    images = [{"bytes": png(color), "path": None} for color in ("red", "blue")]
    return pa.table({"image": images, "question": ["What?", "What?"], "answers": [["red"], ["blue", "navy"]]})


def saved(folder: Path, name: str) -> None:
    """A folder as `save_to_disk` of `datasets` writes it."""
    table, place = arrow_rows(), folder / name
    place.mkdir(parents=True)
    with pa.OSFile(str(place / "data-0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))


@pytest.mark.parametrize("kind", ["own.parquet", "saved", "splits", "splits:test"])
def test_pictures_inside_of_a_table_are_unpacked(kind: str, folder: Path) -> None:
    if kind == "own.parquet":
        pq.write_table(arrow_rows(), folder / kind)
    elif kind == "saved":
        saved(folder, kind)
    else:
        for split in ("train", "test"):
            saved(folder / "splits", split)
        (folder / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        assert open_questions(folder / kind).table.split == "test"
    first, second = items_of(folder / kind)
    assert (first.gold, second.gold) == ("red", ["blue", "navy"])
    path = Path(first.messages[0]["content"][0]["path"])
    assert path.is_relative_to(folder / "home") and path.read_bytes() == png("red")
    assert sorted(p.name for p in folder.iterdir() if p.name not in ("img", "home")) == [kind.partition(":")[0]]


def test_a_picture_is_a_path_a_data_url_base64_a_list_or_nothing(folder: Path) -> None:
    inside = base64.b64encode(png("red")).decode()
    values = ["img/red.png", f"data:image/png;base64,{inside}", inside, ["img/red.png", "img/blue.png"], [], None]
    rows = [{"id": i, "image": value, "question": "What?", "answer": "red"} for i, value in enumerate(values)]
    (folder / "own.jsonl").write_text(lines(rows))
    counts = [sum(p["type"] == "image" for p in item.messages[0]["content"]) for item in items_of(folder / "own.jsonl")]
    assert counts == [1, 1, 1, 2, 0, 0]


def test_marks_put_the_pictures_where_they_stand(folder: Path) -> None:
    row = {"images": ["img/red.png", "img/blue.png"], "question": "Is <image> like <image>?", "answer": "no"}
    (folder / "own.jsonl").write_text(lines([row]))
    (item,) = items_of(folder / "own.jsonl")
    assert [part["type"] for part in item.messages[0]["content"]] == ["text", "image", "text", "image", "text"]


def test_columns_are_named_and_misspelt_ones_get_the_nearest(folder: Path) -> None:
    (folder / "own.csv").write_text("pic,q,a,answer\nimg/red.png,What?,red,wrong\n")
    (item,) = items_of(folder / "own.csv", columns={"image": "pic", "question": "q", "answer": "a"})
    assert (item.gold, asked(item)) == ("red", "\nWhat?")
    with pytest.raises(DataError, match=r"(?s)no question: its columns are pic, q, a.*--columns question=COLUMN"):
        items_of(folder / "own.csv")
    with pytest.raises(UnknownName, match="did you mean question"):
        items_of(folder / "own.csv", columns={"questoin": "q"})
    with pytest.raises(UnknownName, match="did you mean pic"):
        items_of(folder / "own.csv", columns={"image": "pix"})
    with pytest.raises(UnknownName, match="did you mean contains"):
        table_of_file(folder / "own.csv", scorer="contain")


OPTIONS = {
    "list": ["cat", "dog"],
    "JSON": '["cat", "dog"]',
    "Python": "['cat', 'dog']",
    "object": {"A": "cat", "B": "dog"},
    "lines": "A. cat\nB. dog",
    "brackets": "(A) cat\n(B) dog",
    "bars": "cat|dog",
}


@pytest.mark.parametrize("form", OPTIONS)
@pytest.mark.parametrize("answer", ["B", "b", "(B)", "dog", "Dog", 1, "1"])
def test_options_in_every_form_and_answers_by_letter_text_or_index(form: str, answer: object, folder: Path) -> None:
    row = {"question": "Which?", "choices": OPTIONS[form], "answer": answer}
    (folder / "own.json").write_text(json.dumps([row]))
    table = table_of_file(folder / "own.json")
    (item,) = load_items(table, folder)
    assert table.scorer == "choice" and item.gold == "B" and item.meta["options"] == {"A": "cat", "B": "dog"}
    assert asked(item) == "Which?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    assert SCORERS["choice"].read(item, "It is the dog.") == ("B", 1.0)


def test_options_in_columns_of_their_own(folder: Path) -> None:
    (folder / "own.csv").write_text("question,A,B,C,answer\nWhich?,cat,dog,,B\nWhat?,cat,,fox,A\n")
    table = table_of_file(folder / "own.csv")
    with pytest.raises(DataError, match="option B is empty and a later one is not"):
        load_items(table, folder)
    assert load_items(table, folder, allow_missing=1)[0].meta["options"] == {"A": "cat", "B": "dog"}


@pytest.mark.parametrize(
    ("options", "answer", "why"),
    [
        ({"A": "0", "B": "1", "C": "2"}, "1", None),
        ({"A": "3", "B": "1", "C": "2"}, "2", None),
        ({"A": "B", "B": "A"}, "A", "means A or B"),
        ({"A": "1", "B": "0"}, "1", "means A or B"),
        ({"A": "cat", "B": "dog"}, "fox", "names no option"),
        ({"A": "cat", "B": "dog"}, 2, "names no option"),
        ({"A": "cat", "B": "dog"}, ["A", "B"], "has 2, expected one option"),
        ({}, "A", "`options` is empty"),
    ],
)
def test_an_answer_that_may_mean_two_options_is_not_guessed(options: dict, answer: object, why: str | None) -> None:
    if why is None:
        assert options[gold_for("choice", answer, options)] == answer
    else:
        with pytest.raises(Unfit, match=why):
            gold_for("choice", answer, options)


@pytest.mark.parametrize("bad", [["one"], ["a", "a"], 7, {"A": "x", "C": "y"}, [["a"], ["b"]], "one"])
def test_options_that_are_none_are_named(bad: object) -> None:
    with pytest.raises(Unfit, match="`options`"):
        read_options(bad)


BAD = {
    "not JSON": ("{", "own.jsonl:2: not JSON"),
    "a list": ("[1]", "own.jsonl:2: a list, expected an object"),
    "NUL": ('{"image": "img/red.png", "question": "What?\\u0000"}\0', "own.jsonl:2: not JSON: 1 NUL bytes"),
    "no question": ('{"image": "img/red.png", "answer": "x"}', "`question` is empty, expected a text"),
    "question of another kind": ('{"question": {"a": 1}, "answer": "x"}', "`question` is an object"),
    "no answer": ('{"question": "Q?"}', "`answer` is empty, expected a text"),
    "empty answers": ('{"question": "Q?", "answer": []}', "`answer` is an empty list"),
    "true": ('{"question": "Q?", "answer": true}', "`answer` is true or false"),
    "missing picture": ('{"image": "img/gone.png", "question": "Q?", "answer": "x"}', "no file"),
    "empty picture": ('{"image": "", "question": "Q?", "answer": "x"}', "`image` is empty"),
    "outside": ('{"image": "../../../etc/passwd", "question": "Q?", "answer": "x"}', "--allow-outside"),
    "URL": ('{"image": "http://x.invalid/a.png", "question": "Q?", "answer": "x"}', "--allow-urls"),
    "base64": ('{"image": "data:image/png;base64,%%", "question": "Q?", "answer": "x"}', "broken base64"),
    "no picture": ('{"image": "data:image/png;base64,aGk=", "question": "Q?", "answer": "x"}', "not an image"),
    "long path": (json.dumps({"image": "a/" * 5000, "question": "Q?", "answer": "x"}), "too long for a file's name"),
    "marks": ('{"image": "img/red.png", "question": "<image><image>", "answer": "x"}', "2 <image> placeholders"),
    "mark alone": ('{"question": "See <image>.", "answer": "x"}', "the row has no picture"),
    "half an emoji": ('{"question": "Q \\ud83d?", "answer": "x"}', "half of a surrogate pair"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_and_with_leave_it_counts(kind: str, folder: Path) -> None:
    line, why = BAD[kind]
    (folder / "own.jsonl").write_text(lines(ROWS[:1]) + line + "\n" + lines(ROWS[1:]))
    table = table_of_file(folder / "own.jsonl", scorer="exact")
    with pytest.raises(
        DataError, match=r"(?s)1 of 3 rows of own cannot be asked:.*own\.jsonl:2.*--allow-missing 1"
    ) as e:
        load_items(table, folder)
    assert why in str(e.value)
    items = load_items(table, folder, allow_missing=1)
    assert [bool(item.fault) for item in items] == [False, True, False]
    assert why.removeprefix("own.jsonl:2: ") in items[1].fault


def test_what_cannot_be_counted_is_always_an_error(folder: Path) -> None:
    (folder / "own.json").write_text(json.dumps(ROWS)[:-20])
    table = table_of_file(folder / "own.json", scorer="exact")
    with pytest.raises(DataError, match="nothing behind it can be read"):
        load_items(table, folder, allow_missing=None)


def test_two_rows_of_one_id_are_refused(folder: Path) -> None:
    (folder / "own.jsonl").write_text(lines([{"id": 7, **row} for row in ROWS]))
    with pytest.raises(DataError, match=r"id '7' was used before, at .*own\.jsonl:1"):
        items_of(folder / "own.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b"question,answer\n"])
def test_a_file_without_rows_is_an_error(content: bytes, folder: Path) -> None:
    name = "own.csv" if content.startswith(b"q") else "own.json" if content == b"[]" else "own.jsonl"
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"holds no row|is empty"):
        items_of(folder / name)


def test_a_conversation_asks_all_but_its_last_answer(folder: Path) -> None:
    talk = [("user", [{"type": "image", "image": "img/red.png"}, {"type": "text", "text": "What color?"}])]
    talk += [("assistant", "red"), ("user", "Sure?"), ("assistant", "yes")]
    (folder / "own.jsonl").write_text(lines([{"messages": [{"role": r, "content": c} for r, c in talk]}]))
    (item,) = items_of(folder / "own.jsonl")
    assert [m["role"] for m in item.messages] == ["user", "assistant", "user"] and item.gold == "yes"


def test_numbers_are_checked_and_a_judge_gets_one_text(folder: Path) -> None:
    (folder / "own.jsonl").write_text(lines([{"question": "How many?", "answer": [1.0, "two"]}]))
    (folder / "bad.jsonl").write_text(lines([{"question": "How many?", "answer": "many"}]))
    with pytest.raises(DataError, match="`answer` is 'many', expected a number"):
        items_of(folder / "bad.jsonl", scorer="number")
    assert items_of(folder / "own.jsonl", scorer="number")[0].gold == ["1", "two"]
    table = table_of_file(folder / "own.jsonl", scorer="judge")
    assert table.judge is not None and load_items(table, folder)[0].gold == "1 <OR> two"


@pytest.mark.parametrize(
    ("scorer", "reply", "gold", "scores"),
    [
        ("exact", " Red", "red", (1, 1)),
        ("exact", "It is red.", "red", (0, 1)),
        ("contains", "A red bus", ["bus", "coach"], (1, 1)),
        ("contains", "not a bus", "bus", (1, 0)),
        ("contains", "omnibus", "bus", (0, 0)),
        ("contains", "100 cats", "10", (0, 0)),
        ("contains", "那是一只猫。", "猫", (1, 1)),
        ("contains", "", "bus", (0, 0)),
        ("number", "About **1,200** people", "1200", (1, 1)),
        ("number", "12 cats, 3 dogs", "12", (0, 0)),
        ("number", "The answer is 12.", "12.0", (1, 1)),
        ("number", "none of them", "5", (0, 0)),
        ("relaxed", "104", "100", (1, 1)),
        ("relaxed", "107", "100", (0, 0)),
        ("anls", "a cats", ["a cat", "dog"], (5 / 6, 5 / 6)),
    ],
)
def test_scorers_by_their_short_names(scorer: str, reply: str, gold: object, scores: tuple, folder: Path) -> None:
    (folder / "own.jsonl").write_text(lines([{"question": "Q?", "answer": gold}]))
    (item,) = items_of(folder / "own.jsonl", scorer=scorer)
    found = [SCORERS[scorer].read(item, reply, mode).value for mode in ("upstream", "fixed")]
    assert found == pytest.approx(scores)


def test_a_tolerance_of_numbers_is_a_share_of_the_reference() -> None:
    assert [SCORERS["number"]("103", "100", share) for share in (0.0, 0.02, 0.05)] == [0, 0, 1]


def test_the_edition_follows_the_content(folder: Path) -> None:
    (folder / "own.jsonl").write_text(lines(ROWS))
    table = table_of_file(folder / "own.jsonl")
    first = edition_of(table)
    (folder / "copy.jsonl").write_text(lines(ROWS))
    assert edition_of(table_of_file(folder / "copy.jsonl")) == first and len(first) == 12
    (folder / "own.jsonl").write_text(lines(ROWS).replace("red", "Red"))
    assert edition_of(table) != first
    saved(folder, "saved")
    before = edition_of(table_of_file(folder / "saved"))
    (folder / "saved" / "data-0.arrow").write_bytes((folder / "saved" / "data-0.arrow").read_bytes() + b"\0")
    assert edition_of(table_of_file(folder / "saved")) != before
    assert edition_of(load_benchmark("pope")) == ""


def test_a_short_table_in_benchmarks_is_a_benchmark_like_others(folder: Path) -> None:
    (folder / "own.jsonl").write_text(lines(ROWS))
    (folder / "home" / "benchmarks").mkdir(parents=True)
    (folder / "home" / "benchmarks" / "pets.yaml").write_text("file: ../own.jsonl\nscorer: contains\n")
    home = folder / "home"
    assert "pets" in tables(home)
    table = load_benchmark("PETS", home)
    assert (table.name, table.kind, table.max_new_tokens, table.options["metric"]) == ("pets", "ours", 128, "contains")
    assert len(load_items(table, home)) == 2 and "scorer contains" in describe(table)
    (home / "benchmarks" / "pets.yaml").write_text("name: POPE\nfile: x.jsonl\nscorer: exact\n")
    with pytest.raises(ConfigError, match="expected: pets, as the file is called"):
        load_benchmark("pets", home)
    (home / "benchmarks" / "broken.yaml").write_text("file: [\n")
    assert load_benchmark("pope", home).name == "POPE"  # one bad table is no fault of the others
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        load_benchmark("broken", home)


def test_a_table_names_only_scorers_of_rows(folder: Path) -> None:
    (folder / "own.jsonl").write_text(lines([{**row, "group": "g"} for row in ROWS]))
    given = {"name": "own", "file": str(folder / "own.jsonl")}
    with pytest.raises(UnknownName, match="scorer of own rows"):
        load_items(Benchmark.model_validate({**given, "scorer": "mmmu_item"}), folder)
    with pytest.raises(ConfigError, match="judge beside others"):
        load_items(Benchmark.model_validate({**given, "scorer": {"g": "judge", "h": "exact"}}), folder)
    with pytest.raises(DataError, match="`group` is 'g', expected one with a scorer: h"):
        load_items(Benchmark.model_validate({**given, "scorer": {"h": "exact"}}), folder)


@pytest.mark.parametrize("word", ["my.jsonl", "data/my", "./my", "x.xlsx", "set/my:test", "my.csv:test", "my.jsnl"])
def test_words_that_mean_a_file(word: str) -> None:
    assert is_file_word(word) and not is_file_word("pope") and not is_file_word("digit-haystack-4x")
