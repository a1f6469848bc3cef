"""MMLongBench end to end: the official tree -> items, scores of replies, the judge of summaries, positions of V2PE."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.benchmark_check import images_of, metrics, rows_of, text_of
from vlm.core.errors import DataError, UnknownName
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.benchmark import Benchmark, load_benchmark
from vlm.eval.loaders import Item, load_items
from vlm.eval.longest import longest_prompt
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation
from vlm.eval.run.score import aggregate
from vlm.eval.saved.evaluations import label_of
from vlm.eval.suites import benchmarks_of
from vlm.models.specs import load_preset

TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
GROUPS = ("vrag", "niah", "icl", "summ", "docqa")
LENGTHS = {"8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "128k": 131072}
SETS = {
    "vrag": ["infoseek", "viquae"],
    "niah": [
        *("vh_single", "vh_multi", "retrieval-text", "counting-text", "reasoning-text"),
        *("retrieval-image", "counting-image", "reasoning-image"),
    ],
    "icl": ["cars196", "food101", "inat2021", "sun397"],
    "summ": ["gov-report", "multi-lexsum"],
    "docqa": ["longdocurl", "mmlongdoc", "slidevqa"],
}

Make = Callable[..., Path]


@pytest.fixture
def mini(tmp_path: Path) -> Make:
    def make(group: str, length: str = "8k", n: int | None = None) -> Path:
        return make_mini(f"MMLongBench-{group}-{length}", tmp_path / f"{group}-{length}", seed=5, n=n)

    return make


def table_of(group: str, length: str = "8k", sample: int | None = None) -> Benchmark:
    """The table of a group; with `sample`, as if so many questions were drawn of each file."""
    table = load_benchmark(f"mmlongbench-{group}-{length}")
    if sample is None:
        return table
    sets = {name: {**about, "sample": sample} for name, about in table.options["sets"].items()}
    return table.model_copy(update={"options": {**table.options, "sets": sets}})


def right(item: Item) -> str:
    """A right reply in the words that the prompt asks for."""
    if isinstance(item.gold, int):
        return chr(65 + item.gold) if "n_choices" in item.meta else f"label: {item.gold}"
    if item.meta.get("answer_format") == "List":
        return ", ".join(map(str, json.loads(item.gold)))
    accepted = item.gold if isinstance(item.gold, list) and isinstance(item.gold[0], str) else [item.gold]
    return f"Answer: {accepted[0]}"


def edit(path: Path, change: Callable[[list[Any]], Any]) -> None:
    """Rewrite a JSON-lines file after `change(rows)`."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# tables and miniatures -----------------------------------------------------------------------------------------------


def test_the_suite_names_five_groups_at_five_lengths_as_published() -> None:
    names = benchmarks_of(["mmlongbench"])
    assert sorted(names) == sorted(f"MMLongBench-{group}-{length}" for group in GROUPS for length in LENGTHS)
    for group in GROUPS:
        for length, tokens in LENGTHS.items():
            table = table_of(group, length)
            assert list(table.options["sets"]) == SETS[group] and table.folder == "MMLongBench"
            assert table.max_new_tokens == (384 if group == "summ" else 128)
            assert table.image_override("internvl2") == {"max_tiles": 4, "thumbnail": True}
            assert longest_prompt(table, load_preset("internvl2-2b")).tokens == tokens


@pytest.mark.parametrize("length", ["8k", "128k"])
@pytest.mark.parametrize("group", GROUPS)
def test_a_miniature_loads_and_its_own_answers_score_full(group: str, length: str, mini: Make) -> None:
    table = table_of(group, length)
    items = load_items(table, mini(group, length))
    assert Counter(item.group for item in items) == dict.fromkeys(SETS[group], 2)
    assert all(path.is_file() for item in items for path in images_of(item))
    if group == "summ":
        return
    for compat in ("upstream", "fixed"):
        found = metrics(table, items, [right(item) for item in items], compat)
        assert found[0].value == 100 and found[0].n_scored == len(items) and {m.value for m in found} == {100}
        wrong = metrics(table, items, ["zebra"] * len(items), "fixed")
        assert wrong[0].value < 10 and {m.name for m in wrong} > set(SETS[group])


def test_the_tree_is_the_official_one(mini: Make) -> None:
    for group, file in (
        ("vrag", "vrag/viquae_K8_dep6.jsonl"),
        ("niah", "NIAH/counting-text_test_K8_dep3.jsonl"),
        ("niah", "NIAH/vh_multi_test_1000_K8_dep3.jsonl"),
        ("icl", "ICL/sun397_K8.json"),
        ("summ", "summ/lexsum_K8.jsonl"),
        ("summ", "summ/gov_claims.jsonl"),
        ("docqa", "documentQA/mmlongdoc_K8.jsonl"),
    ):
        assert (mini(group) / "mmlb_data" / file).is_file()
    assert (mini("docqa") / "mmlb_image/slidevqa/slidevqa-0/slidevqa-0_page0.png").is_file()


# prompts, as the published loaders write them ------------------------------------------------------------------------


def first(group: str, name: str, folder: Path) -> tuple[Item, dict[str, Any]]:
    """The first item of a set and its record."""
    item = next(item for item in load_items(table_of(group), folder) if item.group == name)
    path = folder / "mmlb_data" / table_of(group).options["sets"][name]["file"].format(length=8)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return item, next(row for row in rows if f"{name}/{row['id']}" == item.meta["cluster"])


def test_passages_then_the_picture_with_its_question(mini: Make) -> None:
    item, record = first("vrag", "infoseek", mini("vrag"))
    passages = "\n\n".join(f"Document (Title: {c['title']}): {c['text']}" for c in record["ctxs"])
    begin = "Use the given documents to write a concise and short answer to the question about the entity shown in the"
    format_ = " image. Write your answer in the following format:\nAnswer: [answer]\n\n"
    assert text_of(item) == f"{begin}{format_}{passages}\n\nQuestion: <image>{record['question']}"
    assert item.gold == record["answer"]


def test_needles_keep_the_order_of_document_question_and_options(mini: Make) -> None:
    folder = mini("niah")
    item, record = first("niah", "counting-image", folder)
    names = [path.relative_to(folder.absolute() / "mmlb_image").as_posix() for path in images_of(item)]
    assert names == record["image_list"] + record["needle_image_list"] and item.gold == record["answer"]
    item, record = first("niah", "retrieval-image", folder)
    assert text_of(item).endswith(f"{record['question']}\nA. <image>\nB. <image>\nC. <image>\nD. <image>")
    assert "with the option's letter (A, B, etc.) based on" in text_of(item) and item.meta["n_choices"] == 4
    item, record = first("niah", "vh_single", folder)
    assert "\n\n" + "\n".join(["<image>"] * 3) + f"\n\nQuestion: {record['question']}" in text_of(item)


def test_pages_are_named_by_fifteen_characters_of_their_document(mini: Make) -> None:
    folder = mini("docqa")
    long = "a_document_with_a_long_name"
    path = folder / "mmlb_data/documentQA/slidevqa_K8.jsonl"

    def rename(rows: list[Any]) -> None:
        for row in rows:
            for page in row["page_list"]:
                new = folder / "mmlb_image" / page.replace(row["doc_name"] + "/", long + "/")
                new.parent.mkdir(exist_ok=True)
                new.write_bytes((folder / "mmlb_image" / page).read_bytes())
            row["page_list"] = [page.replace(row["doc_name"] + "/", long + "/") for page in row["page_list"]]
            row["doc_name"] = long

    edit(path, rename)
    item, record = first("docqa", "slidevqa", folder)
    pages = "\n\n".join(["Document a_document_with: <image>"] * 3)
    asked = f"Question: Based on Document a_document_with, answer the following question. {record['question']}"
    assert text_of(item).endswith(f"Answer: [answer]\n\n{pages}\n\n{asked}")
    item, _ = first("summ", "gov-report", mini("summ"))
    lines = [f"Document gov-report-{item.id[-1:]} (page {n}): <image>" for n in range(3)]
    text = re.sub(r"gov-report-\d", f"gov-report-{item.id[-1:]}", text_of(item))
    assert text.endswith("Government Report:\n" + "\n\n".join(lines) + "\n\nNow please summarize the report.")


def test_examples_come_in_rounds_before_the_picture_that_is_asked(mini: Make) -> None:
    items = load_items(table_of("icl"), folder := mini("icl", n=6))
    content = json.loads((folder / "mmlb_data/ICL/food101_K8.json").read_text())["shapes"]
    label_of_image = {example["image"]: example["id"] for example in content["exemplar_list"][0][0]}
    for item in (item for item in items if item.group == "food101"):
        assert 'Only output "label: {label}" and nothing else.\n\nTraining examples:\n<image>\nlabel: ' in text_of(item)
        names = [path.relative_to(folder.absolute() / "mmlb_image").as_posix() for path in images_of(item)]
        shown = [int(label) for label in re.findall(r"label: (\d)", text_of(item))]
        assert shown == [label_of_image[name] for name in names[:-1]] and sorted(shown) == [0, 1, 2, 3]
        assert item.gold == next(t["answer"] for t in content["test_example"] if t["image"] == names[-1])
    assert load_items(table_of("icl"), folder) == items  # which examples, and their order, is no matter of chance
    orders = {tuple(re.findall(r"label: (\d)", text_of(item))) for item in items}
    assert len(orders) > 2


def test_the_published_draw_of_questions_with_all_their_depths(mini: Make) -> None:
    """Expected: the published loaders, run on these files with seed 42 and four questions."""
    folder = mini("vrag", n=30)

    def three_depths(rows: list[Any]) -> None:
        for i, row in enumerate(rows):
            row["id"] = f"x{i // 3}"

    for path in (folder / "mmlb_data/vrag").iterdir():
        edit(path, three_depths)
    (folder / "mini.json").unlink()  # four of ten questions: the number of items is another
    drawn = [images_of(i)[0].name for i in load_items(table_of("vrag", sample=4), folder) if i.group == "infoseek"]
    assert drawn == [f"{k}.png" for k in (0, 1, 2, 3, 4, 5, 12, 13, 14, 27, 28, 29)]
    folder = mini("docqa", n=30)
    (folder / "mini.json").unlink()
    items = [item for item in load_items(table_of("docqa", sample=4), folder) if item.group == "slidevqa"]
    assert [item.meta["cluster"] for item in items] == [f"slidevqa/slidevqa_{k}" for k in (29, 16, 7, 25)]
    folder = mini("icl", n=30)
    (folder / "mini.json").unlink()
    items = [item for item in load_items(table_of("icl", sample=4), folder) if item.group == "food101"]
    assert [images_of(item)[-1].name for item in items] == [f"test{k}.png" for k in (19, 14, 10, 26)]


def test_pictures_with_a_quotation_mark_in_their_name_are_left_out_as_published(mini: Make) -> None:
    folder = mini("vrag", n=3)
    edit(folder / "mmlb_data/vrag/viquae_K8_dep6.jsonl", lambda rows: rows[1].update(image='viquae/"1".png'))
    (folder / "mini.json").unlink()
    groups = Counter(item.group for item in load_items(table_of("vrag"), folder))
    assert groups == {"infoseek": 3, "viquae": 2}


# scores --------------------------------------------------------------------------------------------------------------


def test_replies_without_yes_or_no_are_guessed_in_turn_and_low_accuracies_are_turned_over(mini: Make) -> None:
    table, folder = table_of("niah"), mini("niah", n=8)
    items = [item for item in load_items(table, folder) if item.group in ("vh_single", "vh_multi")]
    assert [item.meta["guess"] for item in items] == [0, 1, 1, 0] * 4
    silent = rows_of(table, items, ["I cannot tell."] * 16)
    truth = [item.gold == "Yes" for item in items]
    assert [row["score"] for row in silent] == [float(g == t) for g, t in zip([0, 1, 1, 0] * 4, truth, strict=True)]
    assert {row["strict_score"] for row in silent} == {0}
    rows = rows_of(table, items, ["no" if t else "yes" for t in truth[:7]] + ["Yes" if t else "No" for t in truth[7:]])
    upstream, fixed = ({m.name: m for m in aggregate(table, rows, c)} for c in ("upstream", "fixed"))
    assert upstream["vh_single"].value == 87.5 and "one minus it" in upstream["vh_single"].note
    assert fixed["vh_single"].value == 12.5 and fixed["vh_single"].low < 12.5 < fixed["vh_single"].high
    assert upstream["vh_multi"].value == fixed["vh_multi"].value == 100
    assert upstream["NIAH"].value is None and "3 missing: retrieval, counting, reasoning" in upstream["NIAH"].note


def test_the_headline_weighs_tasks_not_files(mini: Make) -> None:
    table = table_of("niah")
    items = load_items(table, mini("niah"))
    replies = [right(item) if item.group in ("vh_single", "vh_multi", "retrieval-text") else "zebra" for item in items]
    found = {m.name: m.value for m in metrics(table, items, replies, "fixed")}
    assert (found["NIAH"], found["retrieval"], found["counting"]) == (50, 50, 0)


# bad input -----------------------------------------------------------------------------------------------------------


def test_a_half_copied_tree_names_the_file_that_is_missing(mini: Make) -> None:
    for group, file in (
        ("vrag", "vrag/viquae_K8_dep6.jsonl"),
        ("icl", "ICL/sun397_K8.json"),
        ("summ", "summ/gov_claims.jsonl"),
    ):
        folder = mini(group)
        (folder / "mmlb_data" / file).unlink()
        with pytest.raises(DataError, match=re.escape(file)):
            load_items(table_of(group), folder)


def test_a_missing_picture_is_counted_and_named(mini: Make) -> None:
    folder = mini("docqa")
    (folder / "mmlb_image/slidevqa/slidevqa-1/slidevqa-1_page2.png").unlink()
    with pytest.raises(DataError, match=r"slidevqa-1_page2.png is missing; 1 of 6 items.*slidevqa 1"):
        load_items(table_of("docqa"), folder)
    items = load_items(table_of("docqa"), folder, allow_missing=1)
    assert sum(bool(item.fault) for item in items) == 1


def test_another_length_is_no_benchmark_and_its_files_are_asked_for(mini: Make) -> None:
    with pytest.raises(UnknownName, match="mmlongbench-vrag-12k"):
        load_benchmark("mmlongbench-vrag-12k")
    folder = mini("vrag")
    (folder / "mini.json").unlink()
    with pytest.raises(DataError, match=r"infoseek_K16_dep3\.jsonl"):
        load_items(table_of("vrag", "16k"), folder)


@pytest.mark.parametrize(
    ("group", "file", "change", "message"),
    [
        ("vrag", "vrag/infoseek_K8_dep3.jsonl", {"answer": [3]}, r"jsonl:1: 3"),
        ("vrag", "vrag/infoseek_K8_dep3.jsonl", {"image": "../../x.png"}, "image path"),
        ("vrag", "vrag/infoseek_K8_dep3.jsonl", {"ctxs": [{"title": "t"}]}, "no `text`"),
        ("vrag", "vrag/infoseek_K8_dep3.jsonl", {"answer": []}, "empty answer"),
        ("niah", "NIAH/vh_single_test_1000_K8_dep6.jsonl", {"answer": "maybe"}, "Yes or No"),
        ("niah", "NIAH/retrieval-image_test_K8_dep6.jsonl", {"answer": 4}, "4 of 4 options"),
        ("niah", "NIAH/counting-image_test_K8_dep3.jsonl", {"answer": ["2"]}, "whole numbers"),
        ("niah", "NIAH/counting-image_test_K8_dep3.jsonl", {"image_list": []}, "placeholders"),
        ("docqa", "documentQA/slidevqa_K8.jsonl", {"answer_format": "Date"}, "Integer, Float, String"),
        ("docqa", "documentQA/slidevqa_K8.jsonl", {"page_list": ["page1.png"]}, "DOCUMENT/NAME"),
        ("summ", "summ/gov_K8.jsonl", {"image_list": ["a/b.png"]}, "DOCUMENT/NAME_pageN"),
        ("summ", "summ/gov_K8.jsonl", {"id": "another"}, "no `another`"),
    ],
)
def test_a_faulty_record_is_named(group: str, file: str, change: dict[str, Any], message: str, mini: Make) -> None:
    path = mini(group) / "mmlb_data" / file
    edit(path, lambda rows: rows[0].update(change))
    with pytest.raises(DataError, match=message) as error:
        load_items(table_of(group), path.parents[2])
    assert path.name in str(error.value) or "claims" in str(error.value)


def test_faulty_examples_are_named(mini: Make) -> None:
    path = mini("icl") / "mmlb_data/ICL/cars196_K8.json"
    lonely = {"d": {"test_example": [{"image": "x", "answer": 0}]}}
    flat = {"d": {"test_example": [{}], "exemplar_list": [[{}]]}}
    for content, message in (([], "not an object"), (lonely, "exemplar_list"), (flat, "no list of examples")):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            load_items(table_of("icl"), path.parents[2])


# positions -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=TOKENIZER, seed=0), folder, tokenizer=TOKENIZER)
    return Checkpoint(folder, device="cpu")


def test_v2pe_has_its_own_positions_and_plain_prefill_those_of_the_published_rows(
    mini: Make, checkpoint: Checkpoint
) -> None:
    item = load_items(table_of("icl"), mini("icl"))[0]
    rule = {"max_tiles": 1}
    right_ = NativeBackend(checkpoint, stride=2, image_rule=rule).encode(item.id, item.messages)
    backend = NativeBackend(checkpoint, stride=2, image_rule=rule, positions="plain-prefill")
    found = backend.encode(item.id, item.messages)
    n = len(found)
    assert np.array_equal(found.position_ids[:-1], np.arange(n - 1)) and found.position_ids.dtype == np.float64
    assert found.position_ids[-1] == right_.position_ids[-1] < n - 1
    assert np.array_equal(found.input_ids, right_.input_ids) and found.image_spans == right_.image_spans

    reply = backend.answer([found], max_new_tokens=6, min_new_tokens=6)[0]
    ids, places = found.input_ids.tolist(), found.position_ids.tolist()
    pixels = checkpoint.processor.pixels(found.pixels)
    for _ in range(reply.n_new):  # without a cache: the reply counts on from the last position
        with torch.inference_mode():
            output = checkpoint.model(
                torch.tensor([ids]), pixel_values=pixels, position_ids=torch.tensor([places], dtype=torch.float64)
            )
        ids, places = [*ids, int(output.logits[0, -1].argmax())], [*places, places[-1] + 1]
    assert checkpoint.processor.tokenizer.decode(ids[n:]).strip() == reply.text


def test_positions_have_their_own_folder_and_words(mini: Make, tmp_path: Path, checkpoint: Checkpoint) -> None:
    options = Options(stride=64, positions="plain-prefill")
    assert (
        options.folder == "stride64-plain-prefill" and label_of(options.variant) == "stride 64, plain-prefill positions"
    )
    with pytest.raises(ValueError, match="positions"):
        Options(positions="plain")
    table, data = table_of("vrag"), mini("vrag")
    for positions in ("exact", "plain-prefill"):
        backend = NativeBackend(checkpoint, stride=2, positions=positions, image_rule={"max_tiles": 1})
        options = Options(stride=2, positions=positions, max_new_tokens=4)
        summary = run_evaluation(table, backend, tmp_path / positions, options, data=data)
        assert summary["metrics"][0]["name"] == "VRAG" and summary["metrics"][0]["scored"] == 4
        assert summary["provenance"]["decode"]["positions"] == positions
    rows = [
        json.loads((tmp_path / p / "results.jsonl").read_text().splitlines()[0]) for p in ("exact", "plain-prefill")
    ]
    assert rows[0]["max_position"] < rows[1]["max_position"] == rows[1]["tokens"] - 2
