"""DocVQA, InfoVQA, TextVQA, VizWiz, GQA, AI2D: official files to items, exact prompts, scores, submission files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from support import benchmark_check as check
from support import fake_backend as fake
from vlm.core.errors import DataError, UnknownName
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation
from vlm.eval.run.score import score_item
from vlm.eval.run.submission import write_submission

SCORED = ["DocVQA", "InfoVQA", "TextVQA", "VizWiz", "GQA", "AI2D"]
SERVER = ["DocVQA-test", "InfoVQA-test", "VizWiz-test"]
UNANSWERABLE = f"When the provided information is insufficient, respond with 'Unanswerable'. {check.SHORT}"
SUFFIX = dict.fromkeys(SCORED + SERVER, f" {check.SHORT}") | {"AI2D": ""}
SUFFIX |= dict.fromkeys(["VizWiz", "VizWiz-test"], f" {UNANSWERABLE}")


def questions(name: str, folder: Path) -> Path:
    return folder / load_benchmark(name).options["questions"]


def edit(path: Path, change) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_complete_downloads_have_the_published_numbers_of_questions() -> None:
    expected = {"DocVQA": 5349, "DocVQA-test": 5188, "InfoVQA": 2801, "InfoVQA-test": 3288, "TextVQA": 5000}
    expected |= {"VizWiz": 4319, "VizWiz-test": 8000, "GQA": 12578, "AI2D": 3088}
    assert {name: sum(load_benchmark(name).counts.groups.values()) for name in expected} == expected


def test_tokens_and_tiles_are_the_published_ones() -> None:
    tokens = {"DocVQA": 100, "InfoVQA": 100, "TextVQA": 10, "VizWiz": 10, "GQA": 10, "AI2D": 10}
    assert {name: load_benchmark(name).max_new_tokens for name in tokens} == tokens
    tiles = {"DocVQA": 18, "InfoVQA": 24, "TextVQA": 6, "VizWiz": 6, "GQA": 6, "AI2D": 6}
    assert {name: load_benchmark(name).image_override("internvl2")["max_tiles"] for name in tiles} == tiles
    assert all(load_benchmark(n).image_override(f) == {} for n in tiles for f in ("internvl-chat-v1-2", "convllava"))


@pytest.mark.parametrize("name", SCORED + SERVER)
def test_the_prompt_is_the_published_one_to_the_byte(name: str, tmp_path: Path) -> None:
    _, items = check.mini(name, tmp_path / "m", n=3)
    rows = [json.loads(line) for line in questions(name, tmp_path / "m").read_text().splitlines()]
    for item, row in zip(items, rows, strict=True):
        assert check.text_of(item) == f"<image>\n{row['question']}{SUFFIX[name]}"
        assert check.images_of(item) == [tmp_path / "m" / row["image"].split("/", 2)[2]]
    if name == "AI2D":
        assert check.text_of(items[0]).endswith(f"\n{check.LETTER}")


def test_convllava_is_asked_as_through_its_harness(tmp_path: Path) -> None:
    for name in ("DocVQA", "TextVQA"):
        _, items = check.mini(name, tmp_path / name, n=1, family="convllava")
        assert check.text_of(items[0]).endswith(f"?\n{check.SHORT}")


@pytest.mark.parametrize("name", SCORED + SERVER)
def test_a_miniature_is_deterministic_and_its_pictures_open(name: str, tmp_path: Path) -> None:
    _, items = check.mini(name, tmp_path / "a")
    assert 18 <= len(items) <= 60 and len({item.id for item in items}) == len(items)
    for item in items:
        Image.open(check.images_of(item)[0]).load()
    other = [make_mini(name, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    assert check.digest(tmp_path / "a") == check.digest(other[0]) != check.digest(other[1])


@pytest.mark.parametrize("name", SCORED)
def test_perfect_wrong_and_empty_replies_end_to_end(name: str, tmp_path: Path) -> None:
    check.perfect_wrong_and_empty_replies(name, tmp_path / "m")


def test_gqa_shows_binary_and_open_questions_apart(tmp_path: Path) -> None:
    table, items = check.mini("GQA", tmp_path / "m")
    yes_no = [item.gold if item.gold in ("yes", "no") else "unknown" for item in items]
    found = {metric.name: metric for metric in check.metrics(table, items, yes_no)}
    assert list(found) == ["accuracy", "binary", "open"] and (found["binary"].value, found["open"].value) == (100, 0)
    assert 0 < found["accuracy"].value < 100
    trailing = score_item(table, items[0], f"{items[0].gold}. ")
    assert trailing.value == 0 and score_item(table, items[0], f"{items[0].gold}. ", "fixed").value == 1


def test_ten_answers_count_as_people_agree(tmp_path: Path) -> None:
    table, items = check.mini("TextVQA", tmp_path / "m", n=2)
    assert len(items[0].gold) == 10
    two_of_ten = score_item(table, items[0], items[0].gold[-1])
    assert two_of_ten.value == pytest.approx(0.6)


def test_answers_come_from_the_annotation_file_and_not_from_the_questions(tmp_path: Path) -> None:
    folder = make_mini("DocVQA", tmp_path / "m", n=2)
    edit(questions("DocVQA", folder), lambda rows: [row.update(answer=["other"]) for row in rows])
    official = json.loads((folder / "val" / "val_v1.0.json").read_text())
    items = load_items(load_benchmark("DocVQA"), folder)
    assert [item.gold for item in items] == [entry["answers"] for entry in official["data"]]


@pytest.mark.parametrize("name", SCORED + SERVER)
def test_a_short_download_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_mini(name, tmp_path / "m", n=3)
    edit(questions(name, folder), lambda rows: rows.pop())
    with pytest.raises(DataError, match="short download"):
        load_items(load_benchmark(name), folder)
    (folder / "mini.json").unlink()
    with pytest.raises(DataError, match="short download"):
        load_items(load_benchmark(name), folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("DocVQA", lambda rows: rows[1].update(question_id=7), r"val\.jsonl:2: question id 7 is not in the annot"),
        ("TextVQA", lambda rows: rows[1].pop("image"), r"textvqa_val\.jsonl:2: no `image`"),
        ("GQA", lambda rows: rows[1].update(image="data/gqa/no.png"), r"jsonl:2: image .*no\.png is missing"),
        ("AI2D", lambda rows: rows[1].update(answer=" "), r"vlmevalkit\.jsonl:2: empty answer"),
        ("AI2D", lambda rows: rows[1].pop("answer"), r"vlmevalkit\.jsonl:2: no `answer`"),
        ("VizWiz", lambda rows: rows[1].update(question_id=rows[0]["question_id"]), r"jsonl:2: id '1000' was used"),
    ],
)
def test_a_bad_row_is_named(name: str, change, message: str, tmp_path: Path) -> None:
    folder = make_mini(name, tmp_path / "m", n=2)
    edit(questions(name, folder), change)
    with pytest.raises(DataError, match=message):
        load_items(load_benchmark(name), folder)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("DocVQA", "val/val_v1.0.json", "{}", "no `data`"),
        ("VizWiz", "vizwiz_val_annotations.json", '{"annotations": [{"question_id": 1}]}', "no `answers`"),
        ("GQA", "testdev_balanced_questions.json", "[]", "not an object"),
        ("GQA", "testdev_balanced_questions.json", '{"1": {"answer": "a", "types": {}}}', "no `structural`"),
        (
            "InfoVQA",
            "infographicsVQA_val_v1.0_withQT.json",
            '{"data": [{"questionId": 1, "answers": ["a"]}, {"questionId": 1, "answers": ["a"]}]}',
            "occurs twice",
        ),
    ],
)
def test_a_bad_annotation_file_is_named(name: str, file: str, content: str, message: str, tmp_path: Path) -> None:
    folder = make_mini(name, tmp_path / "m", n=2)
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load_items(load_benchmark(name), folder)


# servers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVER)
def test_a_set_that_a_server_scores_gets_no_number(name: str, tmp_path: Path) -> None:
    table, items = check.mini(name, tmp_path / "m")
    assert all(item.gold is None for item in items)
    found = check.metrics(table, items, [*["yes"] * (len(items) - 1), None])
    assert [metric.value for metric in found] == [None] and found[0].n_scored == 0
    assert "submit submission.json to https://" in found[0].note and f"1 of {len(items)} questions" in found[0].note


def test_the_submission_of_docvqa_is_the_list_its_server_takes(tmp_path: Path) -> None:
    table, items = check.mini("DocVQA-test", tmp_path / "m", n=3)
    path = write_submission(table, check.rows_of(table, items, [" Ada ", None, "7"]), tmp_path)
    assert json.loads(path.read_text()) == [
        {"questionId": 1000, "answer": "Ada"},
        {"questionId": 1001, "answer": ""},
        {"questionId": 1002, "answer": "7"},
    ]


def test_the_submission_of_vizwiz_names_images_without_their_folder(tmp_path: Path) -> None:
    table, items = check.mini("VizWiz-test", tmp_path / "m", n=1)
    path = write_submission(table, check.rows_of(table, items, ["unanswerable"]), tmp_path)
    assert json.loads(path.read_text()) == [{"image": "VizWiz_test_00000000.png", "answer": "unanswerable"}]


def test_an_evaluation_leaves_the_submission_beside_its_results(tmp_path: Path) -> None:
    for name, expected in (("InfoVQA-test", True), ("InfoVQA", False)):
        folder, out = make_mini(name, tmp_path / name, n=4), tmp_path / "out" / name
        summary = run_evaluation(load_benchmark(name), fake.FakeBackend(), out, Options(), data=folder)
        assert (out / "submission.json").exists() == expected == (summary["metrics"][0]["value"] is None)
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert all((row["score"] is None) == expected for row in rows)
        if expected:
            replies = [entry["answer"] for entry in json.loads((out / "submission.json").read_text())]
            assert replies == [row["completion"] for row in rows]


def test_an_unknown_submission_format_is_named(tmp_path: Path) -> None:
    table = load_benchmark("VizWiz-test")
    table = table.model_copy(update={"submission": table.submission.model_copy(update={"format": "vizwizz"})})
    with pytest.raises(UnknownName, match="did you mean vizwiz"):
        write_submission(table, [], tmp_path)
    assert write_submission(load_benchmark("GQA"), [], tmp_path) is None
