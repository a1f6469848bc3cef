"""ScienceQA, SEED-I, MMBench, CCBench (and MMMU, more in test_bench_mmmu): files to items, exact prompts, scores,
submission files."""

import base64
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from support import benchmark_check as check
from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.loaders.pictures import picture_file
from vlm.eval.mini import make_mini
from vlm.eval.run.score import score_item
from vlm.eval.run.submission import write_submission
from vlm.eval.scorers import SCORERS

CIRCULAR = ["MMBench-dev-en", "MMBench-dev-cn", "CCBench"]
SCORED = ["ScienceQA", "SEED-I", *CIRCULAR, "MMMU"]
SERVER = ["MMBench-test-en", "MMBench-test-cn", "MMMU-test"]
CHINESE = "请直接回答选项字母。"


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def change_tsv(path: Path, change) -> None:
    """Rewrite a TSV after `change(table)`, which may return another table."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(path, sep="\t", index=False)


def test_complete_downloads_have_the_published_numbers_of_questions() -> None:
    expected = {"ScienceQA": 2017, "SEED-I": 14233, "MMMU": 900, "MMMU-test": 10500, "CCBench": 2040}
    expected |= {"MMBench-dev-en": 4377, "MMBench-dev-cn": 4329, "MMBench-test-en": 6666, "MMBench-test-cn": 6666}
    assert {name: sum(load_benchmark(name).counts.groups.values()) for name in expected} == expected
    assert set(load_benchmark("MMMU").counts.groups.values()) == {30}
    assert load_benchmark("MMMU").counts.groups.keys() == load_benchmark("MMMU-test").counts.groups.keys()


def test_tokens_and_tiles_are_the_published_ones() -> None:
    for name in SCORED + SERVER:
        table = load_benchmark(name)
        assert table.max_new_tokens == (10 if name.startswith("MMMU") else 100)
        assert table.image_override("internvl2") == {"max_tiles": 6} and table.image_override("convllava") == {}


# prompts -------------------------------------------------------------------------------------------------------------


def test_scienceqa_puts_the_hint_first_where_there_is_one(tmp_path: Path) -> None:
    _, items = check.mini("ScienceQA", tmp_path / "m", n=2)
    plain, hinted = jsonl(tmp_path / "m" / "scienceqa_test_img.jsonl")
    for item, row, hint in ((items[0], plain, ""), (items[1], hinted, "Look at the figure.\n")):
        lines = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCDE", row["choices"], strict=False))
        assert check.text_of(item) == f"<image>\n{hint}{row['question']}{lines}\n{check.LETTER}"
        assert item.gold == "ABCDE"[row["answer"]]


def test_seed_asks_the_text_of_the_file(tmp_path: Path) -> None:
    _, items = check.mini("SEED-I", tmp_path / "m", n=1)
    rows = jsonl(tmp_path / "m" / "seed.jsonl")
    assert [check.text_of(item) for item in items] == [f"<image>\n{row['text']}" for row in rows]
    assert rows[0]["text"].endswith(f"\n{check.LETTER}") and len({item.group for item in items}) == 9


@pytest.mark.parametrize("name", [*CIRCULAR, "MMBench-test-en", "MMBench-test-cn"])
def test_mmbench_lists_filled_options_and_speaks_the_language_of_the_set(name: str, tmp_path: Path) -> None:
    table, items = check.mini(name, tmp_path / "m")
    rows = pd.read_csv(tmp_path / "m" / table.options["file"], sep="\t", dtype=str).to_dict(orient="records")
    suffix = check.LETTER if name.endswith("-en") else CHINESE
    hints = set()
    for item, row in zip(items, rows, strict=True):
        hint = "" if pd.isna(row["hint"]) else f"{row['hint']}\n"
        lines = "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD" if not pd.isna(row[letter]))
        assert check.text_of(item) == f"<image>\n{hint}{row['question']}{lines}\n{suffix}"
        hints.add(bool(hint))
    assert hints == {True, False} and {len(item.meta["options"]) for item in items} == {2, 3, 4}


# images inside tables ------------------------------------------------------------------------------------------------


def test_images_are_written_once_and_rotations_share_one(tmp_path: Path) -> None:
    table, items = check.mini("MMBench-dev-en", tmp_path / "m")
    files = {path: path.stat().st_mtime_ns for item in items for path in check.images_of(item)}
    assert {path.parent for path in files} == {tmp_path / "m" / "images"} and len(files) <= 6
    row = pd.read_csv(tmp_path / "m" / table.options["file"], sep="\t").iloc[0]
    assert check.images_of(items[0])[0].read_bytes() == base64.b64decode(row["image"])
    load_items(table, tmp_path / "m")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert {path.name for path in (tmp_path / "m" / "images").iterdir()} == {path.name for path in files}


def test_a_changed_image_gets_a_file_of_its_own(tmp_path: Path) -> None:
    table, items = check.mini("MMBench-dev-en", tmp_path / "m")
    other = base64.b64encode(check.images_of(items[-1])[0].read_bytes()).decode()
    change_tsv(tmp_path / "m" / table.options["file"], lambda rows: rows.__setitem__("image", other))
    again = load_items(table, tmp_path / "m")
    assert check.images_of(again[0]) == check.images_of(items[-1]) != check.images_of(items[0])


def test_what_is_no_image_or_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"here: not an image"):
        picture_file(tmp_path, b"no image", "here")
    assert not (tmp_path / "images").exists()
    (tmp_path / "images").write_text("a file where the folder should be")
    _, items = check.mini("MMBench-dev-en", tmp_path / "m", n=1)
    with pytest.raises(DataError, match=r"cannot be written"):
        picture_file(tmp_path, check.images_of(items[0])[0].read_bytes(), "here")


# scores --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORED + SERVER)
def test_a_miniature_is_deterministic_and_its_pictures_open(name: str, tmp_path: Path) -> None:
    first, again, other = (make_mini(name, tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert check.digest(first) == check.digest(again) != check.digest(other)
    _, items = check.mini(name, first)
    assert 16 <= len(items) <= 60
    for item in items:
        for path in check.images_of(item):
            Image.open(path).load()


@pytest.mark.parametrize("name", SCORED)
def test_perfect_wrong_and_empty_replies_end_to_end(name: str, tmp_path: Path) -> None:
    check.perfect_wrong_and_empty_replies(name, tmp_path / "m")


@pytest.mark.parametrize("name", CIRCULAR)
def test_one_wrong_rotation_costs_the_question_and_no_other(name: str, tmp_path: Path) -> None:
    table, items = check.mini(name, tmp_path / "m", n=4)
    replies = [item.gold for item in items]
    replies[-1] = "B" if items[-1].gold == "A" else "A"
    found = {metric.name: metric.value for metric in check.metrics(table, items, replies)}
    assert found["circular accuracy"] == 75
    assert found["rows"] == pytest.approx(100 * (len(items) - 1) / len(items))


def test_a_set_that_a_limit_cut_does_not_count(tmp_path: Path) -> None:
    """The first rows of the file are the unrotated ones: alone they would be an easier benchmark of the same name."""
    table, items = check.mini("MMBench-dev-en", tmp_path / "m")
    first = check.metrics(table, items[:6], [item.gold for item in items[:6]])
    assert first[0].value is None and "no set" in first[0].note and first[1].value == 100


def test_always_the_same_letter_earns_nothing_in_circular_evaluation(tmp_path: Path) -> None:
    table, items = check.mini("MMBench-dev-en", tmp_path / "m")
    assert check.metrics(table, items, ["A"] * len(items))[0].value == 0


def test_option_texts_and_published_letter_rules(tmp_path: Path) -> None:
    table, items = check.mini("ScienceQA", tmp_path / "m", n=1)
    item = items[0]
    assert score_item(table, item, item.meta["options"][item.gold]).value == 1
    seed, items = check.mini("SEED-I", tmp_path / "s", n=1)
    assert score_item(seed, items[0], f"({items[0].gold})").value == 0  # only the first character counts
    assert score_item(seed, items[0], f"({items[0].gold})", "fixed").value == 1


# what must not get through -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ScienceQA", "SEED-I", *CIRCULAR, "MMBench-test-en", "MMMU", "MMMU-test"])
def test_a_short_download_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_mini(name, tmp_path / "m", n=2)
    options = load_benchmark(name).options
    if name.startswith("MMMU"):
        next((folder / "History").iterdir()).unlink()
    elif "file" in options:
        change_tsv(folder / options["file"], lambda rows: rows[:-1])
    else:
        lines = (folder / options["questions"]).read_text().splitlines(keepends=True)
        (folder / options["questions"]).write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="short download"):
        load_items(load_benchmark(name), folder)


def test_seed_passes_over_videos_and_refuses_unknown_questions(tmp_path: Path) -> None:
    table, items = check.mini("SEED-I", tmp_path / "m", n=1)
    official = tmp_path / "m" / "SEED-Bench.json"
    content = json.loads(official.read_text())
    content["questions"].append({"question_id": "v1", "question_type_id": 10, "answer": "A"})
    official.write_text(json.dumps(content))
    path = tmp_path / "m" / "seed.jsonl"
    path.write_text(path.read_text() + '{"image": "none.png", "text": "What happens?", "question_id": "v1"}\n')
    assert load_items(table, tmp_path / "m") == items
    path.write_text(path.read_text() + '{"image": "none.png", "text": "What happens?", "question_id": "v2"}\n')
    with pytest.raises(DataError, match=r"seed\.jsonl:11: question id 'v2' is not in"):
        load_items(table, tmp_path / "m")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("index", "one", r"tsv:2: index 'one'"),
        ("image", "@@@", r"tsv:2: index .* image is malformed"),
        ("image", base64.b64encode(b"no image").decode(), r"tsv:2: not an image"),
        ("image", "", r"tsv:2: no `image`"),
        ("answer", "F", r"tsv:2: answer 'F'"),
        ("question", "", r"tsv:2: no `question`"),
    ],
)
def test_a_bad_mmbench_row_is_named(column: str, value: str, message: str, tmp_path: Path) -> None:
    folder = make_mini("MMBench-dev-en", tmp_path / "m", n=1)
    table = load_benchmark("MMBench-dev-en")
    change_tsv(folder / table.options["file"], lambda rows: rows.__setitem__(column, [value, *rows[column][1:]]))
    with pytest.raises(DataError, match=message):
        load_items(table, folder)


def test_a_missing_or_broken_table_is_named(tmp_path: Path) -> None:
    folder = make_mini("MMBench-dev-en", tmp_path / "m", n=1)
    path = folder / load_benchmark("MMBench-dev-en").options["file"]
    path.write_text("")
    with pytest.raises(DataError, match="not a table"):
        load_items(load_benchmark("MMBench-dev-en"), folder)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        load_items(load_benchmark("MMBench-dev-en"), folder)


@pytest.mark.parametrize("change", [{"answer": 9}, {"choices": ["a"] * 6}, {"answer": -1}])
def test_a_scienceqa_answer_that_is_no_choice_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = make_mini("ScienceQA", tmp_path / "m", n=1)
    path = folder / "scienceqa_test_img.jsonl"
    path.write_text(json.dumps(jsonl(path)[0] | change))
    with pytest.raises(DataError, match=r"img\.jsonl:1: answer .* of . choices"):
        load_items(load_benchmark("ScienceQA"), folder)


# servers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVER)
def test_a_set_that_a_server_scores_gets_no_number(name: str, tmp_path: Path) -> None:
    table, items = check.mini(name, tmp_path / "m")
    assert all(item.gold is None for item in items)
    found = check.metrics(table, items, ["A"] * len(items))
    assert [metric.value for metric in found] == [None] and "submit submission." in found[0].note


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("MMBench-dev-en", ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]),
        ("MMBench-test-cn", ["index", "question", "A", "B", "C", "D", "prediction", "split"]),
        ("CCBench", ["index", "question", "hint", "A", "B", "C", "D", "answer", "prediction"]),
    ],
)
def test_the_submission_of_mmbench_has_the_columns_its_server_takes(name: str, columns: list[str], tmp_path) -> None:
    table, items = check.mini(name, tmp_path / "m", n=2)
    replies = ["B. blue", "=1+1", None, *["(A)"] * (len(items) - 3)]
    rows = check.rows_of(table, items, replies)
    path = write_submission(table, rows, tmp_path)
    header, *lines = check.cells(path)
    assert header == columns and len(lines) == len(items)
    at = columns.index("prediction")
    assert [[*line, None][at] for line in lines[:4]] == ["B", "=1+1", None, "(A)"]
    assert [line[0] for line in lines] == [float(item.id) for item in items]
    assert lines[0][columns.index("A")] == items[0].meta["options"]["A"]
    before = path.read_bytes()
    assert write_submission(table, rows, tmp_path).read_bytes() == before


def test_an_image_cell_that_is_the_index_of_another_row_is_followed(tmp_path: Path) -> None:
    table = load_benchmark("MMBench-dev-en")
    folder = make_mini("MMBench-dev-en", tmp_path / "m", n=6)
    usual = [item.messages for item in load_items(table, folder)]
    indices = [item.id for item in load_items(table, folder)]

    def by_index(rows: pd.DataFrame) -> None:
        first = {str(int(index) % 1_000_000): image for index, image in zip(rows["index"], rows["image"], strict=True)}
        assert len(first) == 6
        cells = zip(rows["index"], rows["image"], strict=True)
        rows["image"] = [image if int(i) < 1_000_000 else str(int(i) % 1_000_000) for i, image in cells]

    change_tsv(folder / table.options["file"], by_index)
    items = load_items(table, folder)
    assert [item.id for item in items] == indices and [item.messages for item in items] == usual


@pytest.mark.parametrize("cell", ["9999", "77777777", "0"])
def test_an_image_cell_that_is_the_index_of_no_picture_says_so(cell: str, tmp_path: Path) -> None:
    """Four digits are also valid base64; the first row naming itself is a circle."""
    folder = make_mini("MMBench-dev-en", tmp_path / "m", n=1)
    table = load_benchmark("MMBench-dev-en")
    change_tsv(folder / table.options["file"], lambda rows: rows.__setitem__("image", [cell, *rows["image"][1:]]))
    with pytest.raises(DataError, match=rf"the image is the index {cell}") as error:
        load_items(table, folder)
    assert "does not help" in str(error.value.fix)


@pytest.mark.parametrize("text", ["None", "NaN", "nan", "NA", "N/A", "null"])
def test_an_option_that_pandas_reads_away_is_an_option_and_is_marked(text: str, tmp_path: Path) -> None:
    table = load_benchmark("MMBench-dev-en")
    folder = make_mini("MMBench-dev-en", tmp_path / "m", n=2)
    change_tsv(folder / table.options["file"], lambda rows: rows.__setitem__("B", [text, *rows["B"][1:]]))
    changed, *others = load_items(table, folder)
    assert changed.meta["options"]["B"] == text and changed.meta["published_without"] == ["B"]
    assert f"B. {text}\n" in changed.messages[0]["content"][-1]["text"]
    assert changed.meta["row"]["B"] is None  # the submission file is as published
    assert all("published_without" not in item.meta for item in others)
    for reply in ("B", text, f"The answer is {text}."):
        assert SCORERS["vlmevalkit_can_infer"](reply, changed.meta["options"], compat="fixed") == "B"
