"""Official files -> Items: exact prompts, data order, and nothing broken gets through."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.loaders.common import inside, user
from vlm.eval.loaders.milebench import milebench_prompt
from vlm.eval.mini import make_mini

SHORT = "Answer the question using a single word or phrase."


def text_of(item: Item, mark: str = "<image>") -> str:
    return "".join(p["text"] if p["type"] == "text" else mark for p in item.messages[0]["content"])


def images_of(item: Item) -> list[str]:
    return [p["path"] for p in item.messages[0]["content"] if p["type"] == "image"]


@pytest.fixture
def data(tmp_path: Path):
    def make(name: str, n: int = 2) -> Path:
        return make_mini(name, tmp_path / name, seed=1, n=n)

    return make


def edit(path: Path, change) -> None:
    """Rewrite a JSON-lines file after `change(rows)`."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_easyvqa_asks_the_bare_question(data) -> None:
    items = load_items(load_benchmark("easyVQA"), data("easyVQA"))
    assert [item.group for item in items] == ["shape", "color", "yes-no", "yes-no"] * 2
    assert text_of(items[0]) == "<image>\nwhat shape is in the image?"
    assert Path(images_of(items[0])[0]).is_absolute() and items[0].meta["cluster"] == "0"


def test_pope_prompt_ends_with_a_space_for_v2pe_only(data) -> None:
    table, folder = load_benchmark("POPE"), data("POPE")
    item = load_items(table, folder)[0]
    assert text_of(item).startswith("<image>\nIs there a ") and text_of(item).endswith(f"?\n{SHORT} ")
    assert item.gold == "yes" and item.group == "adversarial"
    assert text_of(load_items(table.for_family("internvl-chat-v1-2"), folder)[0]).endswith(SHORT)


def test_pope_refuses_labels_of_another_order(data) -> None:
    folder = data("POPE", 4)
    edit(folder / "coco" / "coco_pope_popular.json", lambda rows: rows.reverse())
    with pytest.raises(DataError, match=r"llava_pope_test.jsonl:5 and .*coco_pope_popular.json:1 are not the same"):
        load_items(load_benchmark("POPE"), folder)


def test_pope_refuses_a_label_file_that_is_cut(data) -> None:
    folder = data("POPE", 4)
    edit(folder / "coco" / "coco_pope_random.json", lambda rows: rows.pop())
    with pytest.raises(DataError, match="has no label left"):
        load_items(load_benchmark("POPE"), folder)


def test_chartqa_joins_with_one_space_and_finds_published_image_paths(data) -> None:
    folder = data("ChartQA", 3)
    items = load_items(load_benchmark("ChartQA"), folder)
    assert text_of(items[1]) == f"<image>\nWhich bar is the highest? {SHORT}"
    assert images_of(items[0]) == [str(folder.absolute() / "ChartQA Dataset/test/png/human_0.png")]
    assert [item.id for item in items] == [f"{split}/{i}" for split in ("human", "augmented") for i in range(3)]


def test_mmniah_prompt_has_no_separator_and_counting_gets_its_own_budget(data) -> None:
    folder = data("MM-NIAH", 1)
    items = {item.group: item for item in load_items(load_benchmark("MM-NIAH"), folder)}
    record = json.loads((folder / "mm_niah_test/annotations/retrieval-text.jsonl").read_text())
    assert text_of(items["retrieval-text"]) == record["context"] + record["question"] + "\n" + SHORT
    choice = text_of(items["retrieval-image"])
    assert choice.endswith("\nA. <image>\nB. <image>\nC. <image>\nD. <image>" + "\nAnswer with the option's letter "
                           "from the given choices directly.")  # fmt: skip
    assert len(images_of(items["retrieval-image"])) == choice.count("<image>") == 6
    assert (
        items["counting-image"].meta["max_new_tokens"] == 320 and "max_new_tokens" not in items["reasoning-text"].meta
    )
    assert not text_of(items["counting-text"]).endswith(SHORT)


def test_milebench_lists_letters_except_for_gpr1200(data) -> None:
    items = load_items(load_benchmark("MileBench"), data("MileBench", 1))
    by_set = {item.group: item for item in items}
    assert len(by_set) == 29
    assert "\nChoice list: \nA. " in text_of(by_set["TQA"])
    assert "\nChoice list: \nimage2\nimage3\n" in text_of(by_set["GPR1200"])
    assert "Choice list" not in text_of(by_set["IEdit"])


def test_milebench_budget_drops_pictures_from_the_front() -> None:
    task = {"context": "{image#1} a {image#2} b", "images_path": ["1.png", "2.png"]}
    record: dict[str, Any] = {"task_instruction_id": 0, "task_instance": task}
    full = milebench_prompt(record, ["Look."], "TQA", 1000, 100)
    assert full == ("Look.\n<image> a <image> b", ["1.png", "2.png"])
    cut = milebench_prompt(record, ["Look."], "TQA", 5 + 2 + 100 + 3 + 99, 100)
    assert cut == ("Look.\n a <image> b", ["2.png"])
    words = milebench_prompt(record, ["Look."], "TQA", 1000, 1, count_tokens=lambda text: len(text.split()))
    assert words == full


def test_milebench_uses_the_tokenizer_it_is_given(data) -> None:
    table = load_benchmark("MileBench").model_copy(
        update={"options": load_benchmark("MileBench").options | {"max_context_len": 700}}
    )
    folder = data("MileBench", 1)
    shown = [
        sum(item.meta["shown_images"] for item in load_items(table, folder, count_tokens=count))
        for count in (None, lambda text: 10 * len(text))
    ]
    assert shown[0] > shown[1]


# what must not get through ---------------------------------------------------------------------------------------


def test_a_short_download_cannot_raise_the_score(data) -> None:
    """A file that lost its last rows is an error, with and without the marker of a miniature."""
    folder = data("ChartQA", 3)
    edit(folder / "test_augmented.jsonl", lambda rows: rows.pop())
    with pytest.raises(DataError, match=r"short download.*augmented: 2 of 3"):
        load_items(load_benchmark("ChartQA"), folder)
    (folder / "mini.json").unlink()
    with pytest.raises(DataError, match=r"short download.*augmented: 2 of 1250, human: 3 of 1250"):
        load_items(load_benchmark("ChartQA"), folder)


def test_a_missing_set_is_a_short_download(data) -> None:
    folder = data("MileBench", 1)
    (folder / "IEdit" / "IEdit.json").write_text(
        '{"meta_data": {"task_instruction": ["x"], "question_type": "open-ended"}, "data": []}'
    )
    with pytest.raises(DataError, match="IEdit: 0 of 1"):
        load_items(load_benchmark("MileBench"), folder)


def test_a_marker_of_another_benchmark_is_refused(data) -> None:
    folder = data("ChartQA")
    (folder / "mini.json").write_text('{"benchmark": "POPE", "seed": 0, "counts": {"human": 2, "augmented": 2}}')
    with pytest.raises(DataError, match="made for POPE"):
        load_items(load_benchmark("ChartQA"), folder)


def test_a_generated_set_without_its_marker_is_refused(data) -> None:
    folder = data("digit-haystack-1x")
    (folder / "mini.json").unlink()
    with pytest.raises(DataError, match=r"has no mini\.json"):
        load_items(load_benchmark("digit-haystack-1x"), folder)


def test_at_least_accepts_more_and_refuses_less(data) -> None:
    table, folder = load_benchmark("MM-NIAH"), data("MM-NIAH", 2)
    (folder / "mini.json").unlink()
    groups = dict.fromkeys(table.options["tasks"], 2)

    def counted(n: int):
        counts = table.counts.model_copy(update={"groups": groups | {"retrieval-text": n}})
        return table.model_copy(update={"counts": counts})

    assert len(load_items(counted(1), folder)) == 12
    with pytest.raises(DataError, match="retrieval-text: 2 of 3"):
        load_items(counted(3), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(question_id=rows[0]["question_id"]), r"test_human.jsonl:2: id 'human/0' was used"),
        (lambda rows: rows[1].update(image="ChartQA Dataset/no.png"), r"test_human.jsonl:2: image .*no.png is missing"),
        (lambda rows: rows[1].update(answer="  "), r"test_human.jsonl:2: empty answer"),
        (lambda rows: rows[1].pop("image"), r"test_human.jsonl:2: no `image`"),
        (lambda rows: rows[1].update(image="../../etc/passwd"), r"test_human.jsonl:2: image path"),
        (lambda rows: rows[1].update(image="data"), r"test_human.jsonl:2: image"),
        (lambda rows: rows[1].update(question=7), r"test_human.jsonl:2: `question` is 7"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(data, change, message: str) -> None:
    folder = data("ChartQA")
    edit(folder / "test_human.jsonl", change)
    with pytest.raises(DataError, match=message):
        load_items(load_benchmark("ChartQA"), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["images_list"].append("x.png"), "1 <image> marks but 2 images"),
        (lambda row: row["meta"].update(placed_depth=[1.5]), "placed_depth"),
        (lambda row: row["meta"].update(choices=["a"], choices_image_path=["b"]), "both text and image options"),
        (lambda row: row.update(answer=[]), "empty answer"),
        (lambda row: row.update(answer=3), "answer 3 of 0 options"),
    ],
)
def test_a_bad_haystack_row_is_refused(data, change, message: str) -> None:
    folder = data("MM-NIAH", 1)
    edit(folder / "mm_niah_test/annotations/retrieval-text.jsonl", lambda rows: change(rows[0]))
    with pytest.raises(DataError, match=rf"retrieval-text\.jsonl:1: {message}"):
        load_items(load_benchmark("MM-NIAH"), folder)


def test_an_easyvqa_answer_outside_the_list_and_a_lost_image_are_refused(data) -> None:
    folder = data("easyVQA")
    path = folder / "test" / "questions.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([[rows[0][0], "hexagon", 0], *rows[1:]]))
    with pytest.raises(DataError, match="hexagon"):
        load_items(load_benchmark("easyVQA"), folder)
    path.write_text(json.dumps(rows))
    (folder / "test" / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"questions.json:4: image .*1\.png is missing"):
        load_items(load_benchmark("easyVQA"), folder)


def test_a_milebench_answer_that_is_no_option_is_refused(data) -> None:
    folder = data("MileBench", 1)
    path = folder / "TQA" / "TQA.json"
    content = json.loads(path.read_text())
    content["data"][0]["response"] = "none of them"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"TQA.json:0: 'none of them' is not an option"):
        load_items(load_benchmark("MileBench"), folder)


def test_paths_and_marks() -> None:
    assert inside(Path("/d"), "data/chartqa/a b/1.png", "w") == Path("/d/a b/1.png")
    with pytest.raises(DataError):
        inside(Path("/d"), "/etc/passwd", "w")
    with pytest.raises(DataError, match="1 <image> placeholders but 2 media"):
        user("<image> x", [Path("/a"), Path("/b")], "w")
    with pytest.raises(DataError, match="1 <image> placeholders but 0 media"):
        user("<image> x", [], "w")
