"""Long-VQA end to end: the published tree -> items, the miniature, scores of single replies, metrics of a task."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark, tables
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.mini.longvqa import MAKERS
from vlm.eval.run.score import aggregate, score_item
from vlm.eval.scorers.longvqa import TASKS

NAMES = [f"Long-VQA-{k}k" for k in (32, 40, 48, 56, 64)]


@pytest.fixture
def mini(tmp_path: Path):
    def make(name: str = "Long-VQA-32k", n: int | None = None) -> Path:
        return make_mini(name, tmp_path / name, seed=3, n=n)

    return make


def rows_of(table: Any, items: list[Any], replies: list[str | None]) -> list[dict[str, Any]]:
    rows = []
    for item, reply in zip(items, replies, strict=True):
        scores = [score_item(table, item, reply, compat).value for compat in ("upstream", "fixed")]
        about = {"id": item.id, "group": item.group, "gold": item.gold, "meta": item.meta, "completion": reply}
        rows.append(
            about | {"outcome": "oom" if reply is None else "ok", "score": scores[0], "strict_score": scores[1]}
        )
    return rows


def test_the_table_names_17_tasks_with_the_published_budgets() -> None:
    assert {f"long-vqa-{k}k" for k in (32, 40, 48, 56, 64)} <= tables().keys()
    for name in NAMES:
        table = load_benchmark(name)
        assert table.name == name and set(table.options["tasks"]) == TASKS.keys() == table.counts.groups.keys()
        budgets = Counter(table.generation.by_group.values())
        assert budgets == {8: 5, 16: 1, 32: 6, 64: 2, 128: 2, 256: 1}
        assert table.image_override("internvl2") == {"max_tiles": 12, "thumbnail": True}
    assert MAKERS.keys() == TASKS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_loads_and_its_own_answers_score_full(name: str, mini) -> None:
    table = load_benchmark(name)
    items = load_items(table, mini(name))
    assert len(items) == 34 and Counter(item.group for item in items) == dict.fromkeys(TASKS, 2)
    n_images = int(name[9:11]) // 8 - 1
    for item in items:
        parts = item.messages[0]["content"]
        assert sum(part["type"] == "image" for part in parts) == n_images
        assert item.meta["max_new_tokens"] == table.generation.by_group[item.group]
        for compat in ("upstream", "fixed"):
            assert score_item(table, item, item.gold, compat).value == pytest.approx(1, abs=1e-7), item
            assert score_item(table, item, "zzz", compat).value < 0.01
        assert score_item(table, item, "", "fixed").value == 0
    for part in items[0].messages[0]["content"]:
        if part["type"] == "image":
            Image.open(part["path"]).load()


def test_the_published_tree_with_and_without_its_outer_folder(mini) -> None:
    folder = mini(n=1)
    assert (folder / "val/long_vqa_32k/val_long_vqa_docvqa_16_32.jsonl").is_file()
    assert (folder / "image/long_vqa/image/docvqa/val/0_0.png").is_file()
    assert (folder / "image/long_vqa/paste/gqa/val/0_0.png").is_file()
    before = load_items(load_benchmark("long-vqa-32k"), folder)
    (folder / "data").mkdir()
    for name in ("val", "image"):
        (folder / name).rename(folder / "data" / name)
    after = load_items(load_benchmark("long-vqa-32k"), folder)
    assert [item.id for item in before] == [item.id for item in after] and before[0].id == "chartqa/0"


def test_longer_variants_have_their_own_files(mini) -> None:
    assert (mini("Long-VQA-64k", 1) / "val/long_vqa_64k/val_long_vqa_gqa_56_64.jsonl").is_file()
    assert (mini("Long-VQA-40k", 1) / "val/long_vqa_40k/val_long_vqa_gqa_32_40.jsonl").is_file()


def edited(folder: Path, change) -> Path:
    path = folder / "val/long_vqa_32k/val_long_vqa_gqa_16_32.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(id=rows[0]["id"]), r"gqa_16_32.jsonl:2: id 'gqa/0' was used before"),
        (lambda rows: rows[0]["image"].append("x.png"), r"jsonl:1: 3 <image> placeholders but 4 media"),
        (lambda rows: rows[0]["image"].__setitem__(0, "no.png"), r"jsonl:1: image .*paste/gqa/val/no.png is missing"),
        (lambda rows: rows[0]["image"].__setitem__(0, "../../x.png"), r"jsonl:1: image path"),
        (lambda rows: rows[0]["image"].__setitem__(0, 7), r"jsonl:1: image 7"),
        (lambda rows: rows[0].pop("conversations"), r"jsonl:1: no `conversations`"),
        (lambda rows: rows[0]["conversations"].pop(), r"jsonl:1: 1 turns"),
        (lambda rows: rows[0]["conversations"][1].update(value=" "), r"jsonl:1: empty answer"),
        (lambda rows: rows[0]["conversations"][1].update(value=7), r"jsonl:1: `value` is 7"),
        (lambda rows: rows.pop(), r"short download.*gqa: 1 of 2"),
    ],
)
def test_a_bad_row_is_refused(mini, change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_items(load_benchmark("Long-VQA-32k"), edited(mini(), change))


def test_images_may_be_named_from_the_dataset_folder(mini) -> None:
    def rename(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["image"] = [f"dataset/image/long_vqa/paste/gqa/val/{name}" for name in row["image"]]

    items = load_items(load_benchmark("Long-VQA-32k"), edited(mini(), rename))
    assert len(items) == 34


def test_without_a_marker_the_published_bound_holds(mini) -> None:
    folder = mini(n=1)
    (folder / "mini.json").unlink()
    with pytest.raises(DataError, match="gqa: 1 of 150"):
        load_items(load_benchmark("Long-VQA-32k"), folder)


def test_metrics_of_perfect_and_of_missing_replies(mini) -> None:
    table = load_benchmark("Long-VQA-32k")
    items = load_items(table, mini())
    perfect = {m.name: m for m in aggregate(table, rows_of(table, items, [item.gold for item in items]))}
    assert set(perfect) == {"mean of 17 tasks", *(f"{task} ({metric})" for task, metric in TASKS.items())}
    assert all(m.value == pytest.approx(100, abs=1e-5) and m.n_scored == m.n_total for m in perfect.values())

    replies = [None if item.group == "gqa" else item.gold for item in items]
    partly = {m.name: m for m in aggregate(table, rows_of(table, items, replies))}
    assert partly["gqa (RACC)"].value is None and partly["gqa (RACC)"].n_total == 2
    assert partly["mean of 17 tasks"].value is None and "gqa" in partly["mean of 17 tasks"].note


def test_bleu_of_a_task_is_that_of_its_corpus_and_samples_without_an_answer_are_counted(mini) -> None:
    table = load_benchmark("Long-VQA-32k")
    items = [item for item in load_items(table, mini(n=3)) if item.group == "textcaps"]
    replies = [items[0].gold, "a red circle", None]
    rows = rows_of(table, items, replies)
    for compat in ("upstream", "fixed"):
        found = {m.name: m for m in aggregate(table, rows, compat)}["textcaps (BLEU4)"]
        single = [row["score"] for row in rows[:2]]
        assert (found.n_scored, found.n_total) == (2, 3)
        assert found.value is not None and abs(found.value / 100 - sum(single) / 2) > 0.01


def test_a_reply_on_which_the_published_scorer_stops_is_wrong(mini) -> None:
    table = load_benchmark("Long-VQA-32k")
    item = next(item for item in load_items(table, mini()) if item.group == "docvqa")
    score = score_item(table, type(item)(item.id, item.messages, ".", item.group, item.meta), ".")
    assert score.value == 0 and "ZeroDivisionError" in score.why
