"""MMMU: parquet files to items, images as each published evaluator shows them, domains, submission file."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support import benchmark_check as check
from vlm.core.errors import DataError
from vlm.core.sample.media import image_size
from vlm.eval.loaders import load_items
from vlm.eval.run.submission import write_submission


def test_mmmu_prompts_by_kind_of_question(tmp_path: Path) -> None:
    table, items = check.mini("MMMU", tmp_path / "m")
    choice, number, two = items[:3]
    a, b, c = choice.meta["options"].values()
    options = f"A. {a}\nB. {b}\nC. {c}"
    assert check.text_of(choice) == f"<image>\n<image 1> Which shape is shown?\n{options}\n{check.LETTER}"
    assert check.text_of(number) == f"<image>\nWhich number is written in <image 1>?\n{check.SHORT}"
    assert check.text_of(two).startswith(
        "<image>\n<image>\nHow does the color change from <image 1> to <image 2>?\nA. "
    )
    assert [item.group for item in items] == list(table.counts.groups) and choice.id == "validation_Accounting_1"
    assert number.gold[1] == f"{number.gold[0]}.0"  # two references, from the official answers


def test_mmmu_images_follow_each_published_evaluator(tmp_path: Path) -> None:
    """V2PE names images, doubles the first and leaves one tile of the others; InternVL-Chat-V1-2 takes the first."""
    named = check.mini("MMMU", tmp_path / "m", family="internvl2")[1]
    start = "The <image 1> is <image>, The <image 2> is <image>\nHow does the color change"
    assert check.text_of(named[2]).startswith(start)
    assert check.text_of(named[1]).startswith("The <image 1> is <image>\nWhich number")
    assert [image_size(path) for path in check.images_of(named[2])] == [(128, 128), (448, 448)]
    first = check.mini("MMMU", tmp_path / "m", family="internvl-chat-v1-2")[1]
    assert check.text_of(first[2]).startswith("<image>\nHow does the color")
    assert [image_size(path) for path in check.images_of(first[2])] == [(64, 64)]


def test_mmmu_shows_domains_and_subjects(tmp_path: Path) -> None:
    table, items = check.mini("MMMU", tmp_path / "m")
    found = {metric.name: metric.value for metric in check.metrics(table, items, [check.right(i) for i in items])}
    assert found["accuracy/Art and Design"] == 100 == found["accuracy/Sociology"] and len(found) == 1 + 6 + 30


def test_bad_mmmu_files_are_named(tmp_path: Path) -> None:
    table, _ = check.mini("MMMU", tmp_path / "m")
    path = tmp_path / "m" / "Accounting" / "validation-00000-of-00001.parquet"
    good = pq.read_table(path)
    pq.write_table(good.set_column(good.column_names.index("options"), "options", [["['a'"]]), path)
    with pytest.raises(DataError, match=r"parquet:0: `options` is"):
        load_items(table, tmp_path / "m")
    pq.write_table(good.drop_columns(["question"]), path)
    with pytest.raises(DataError, match=r"parquet: cannot be read"):
        load_items(table, tmp_path / "m")
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"parquet: cannot be read"):
        load_items(table, tmp_path / "m")
    pq.write_table(good, path)
    answers = tmp_path / "m" / "answer_dict_val.json"
    answers.write_text(answers.read_text().replace("validation_Accounting_1", "validation_Accounting_9"))
    with pytest.raises(DataError, match=r"answer_dict_val\.json: no `validation_Accounting_1`"):
        load_items(table, tmp_path / "m")


def test_the_submission_of_mmmu_maps_ids_to_letters_and_open_replies(tmp_path: Path) -> None:
    table, items = check.mini("MMMU-test", tmp_path / "m")
    replies = ["B. a circle", "It is 7.", "", *["A"] * 27]
    path = write_submission(table, check.rows_of(table, items, replies), tmp_path)
    found = json.loads(path.read_text())
    assert list(found) == [item.id for item in items]
    assert list(found.values())[:4] == ["B", "It is 7.", "", "A"]
