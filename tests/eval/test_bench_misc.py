"""MME, MMVP, MathVista, MM-Vet, RealWorldQA, OCRBench, MM-NIAH-long: official files to items, prompts, scores."""

import json
from pathlib import Path

import pytest
from PIL import Image

from support import benchmark_check as check
from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.score import score_item

LONG = [f"MM-NIAH-long-{length}" for length in ("128k", "256k", "512k", "1m")]
NAMES = ["MME", "MMVP", "MathVista", "MM-Vet", "RealWorldQA", "OCRBench", *LONG]


def test_complete_downloads_have_the_published_numbers_of_questions() -> None:
    expected = {"MME": 2374, "MMVP": 300, "MathVista": 1000, "MM-Vet": 218, "RealWorldQA": 765, "OCRBench": 1000}
    assert {name: sum(load_benchmark(name).counts.groups.values()) for name in expected} == expected
    lines = {"OCR": 40, "artwork": 400, "celebrity": 340, "code_reasoning": 40, "color": 60, "count": 60, "scene": 400}
    lines |= {"commonsense_reasoning": 140, "existence": 60, "landmark": 400, "numerical_calculation": 40}
    assert load_benchmark("MME").counts.groups == lines | {"position": 60, "posters": 294, "text_translation": 40}


def test_tokens_are_the_published_ones() -> None:
    expected = {"MME": 20, "MMVP": 100, "MathVista": 4096, "MM-Vet": 1000, "RealWorldQA": 16}
    assert {name: load_benchmark(name).max_new_tokens for name in expected} == expected
    for name in LONG:
        assert load_benchmark(name).image_override("internvl2") == {"max_tiles": 12, "thumbnail": True}


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_loads_scores_and_is_the_same_for_the_same_seed(name: str, tmp_path: Path) -> None:
    first, again, other = (make_mini(name, tmp_path / str(i), seed=seed) for i, seed in enumerate((5, 5, 6)))
    assert check.digest(first) == check.digest(again) != check.digest(other)
    table = load_benchmark(name)
    items = load_items(table, first)
    assert 18 <= len(items) <= 60
    for path in check.images_of(items[0]):
        Image.open(path).load()
    if name == "MM-Vet":
        return  # a judge scores it: test_judge.py
    for item in items:
        gold = chr(65 + item.gold) if isinstance(item.gold, int) else check.right(item)
        for compat in ("upstream", "fixed"):
            assert score_item(table, item, gold, compat).value == 1, (item, compat)
            assert score_item(table, item, "zzz", compat).value in (0, 1 if name == "MathVista" else 0)
        assert score_item(table, item, "", "fixed").value == 0
        assert score_item(table, item, None).value is None


@pytest.mark.parametrize("name", ["MME", "MMVP", "MM-Vet", "RealWorldQA", "OCRBench", "MathVista", LONG[0]])
def test_a_short_download_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_mini(name, tmp_path / "m")
    marker = json.loads((folder / "mini.json").read_text())
    group = sorted(marker["counts"])[0]
    marker["counts"][group] += 1
    (folder / "mini.json").write_text(json.dumps(marker))
    with pytest.raises(DataError, match=rf"short download.*{group}: {marker['counts'][group] - 1} of"):
        load_items(load_benchmark(name), folder)
    (folder / "mini.json").unlink()
    with pytest.raises(DataError, match="short download"):
        load_items(load_benchmark(name), folder)


# prompts and files, byte for byte --------------------------------------------------------------------------------


def test_mme_joins_with_one_space_and_takes_both_layouts_of_images(tmp_path: Path) -> None:
    table, items = check.mini("MME", tmp_path / "m")
    folder = tmp_path / "m"
    name, question, answer = (folder / "Your_Results" / "color.txt").read_text().splitlines()[0].split("\t")
    assert question.endswith("Please answer yes or no.") and answer == "Yes"
    item = next(item for item in items if item.group == "color")
    assert check.text_of(item) == f"<image>\n{question} {check.SHORT}"
    assert (item.gold, item.meta["set"], item.id) == ("yes", name, "color/1")
    assert check.text_of(load_items(table.for_family("convllava"), folder)[0]).endswith("Please answer yes or no.")
    task = folder / "MME_Benchmark_release_version" / "color"
    (task / "images").mkdir()
    for path in task.glob("*.png"):
        path.rename(task / "images" / path.name)
    moved = load_items(table, folder)
    assert check.images_of(next(i for i in moved if i.group == "color"))[0].parent.name == "images"


def test_mme_points_and_an_image_without_its_pair(tmp_path: Path) -> None:
    table, items = check.mini("MME", tmp_path / "m")
    for replies, perception, cognition in (
        ([item.gold.capitalize() for item in items], 2000, 800),
        (["yes"] * len(items), 500, 200),
        ([""] * len(items), 0, 0),
    ):
        for compat in ("upstream", "fixed"):
            found = {m.name: m.value for m in check.metrics(table, items, replies, compat)}
            assert (found["perception"], found["cognition"]) == (perception, cognition)
    path = tmp_path / "m" / "Your_Results" / "count.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(DataError, match=r"count.txt: 1 consecutive lines"):
        load_items(table, tmp_path / "m")
    path.write_text("a.png\tquestion\n")
    with pytest.raises(DataError, match=r"count.txt:1: \['a.png', 'question'\]"):
        load_items(table, tmp_path / "m")


def test_mmvp_asks_with_letters_and_a_pair_counts_as_a_whole(tmp_path: Path) -> None:
    table, items = check.mini("MMVP", tmp_path / "m", n=2)
    question = check.text_of(items[0])
    assert question.endswith(f"?\nA. Left\nB. Right\n{check.LETTER}") and question.startswith("<image>\nIs the ")
    assert [item.meta["set"] for item in items] == ["0", "0", "1", "1"]
    golds = [item.gold for item in items]
    assert sorted(golds) == ["A", "A", "B", "B"]
    one_wrong = [*golds[:3], "B" if golds[3] == "A" else "A"]
    for replies, pairs in ((golds, 100), (one_wrong, 50), (["A"] * 4, 0), ([""] * 4, 0)):
        found = check.metrics(table, items, replies)
        assert (found[0].name, found[0].value) == ("pair accuracy", pairs)
    path = tmp_path / "m" / "Questions.csv"
    path.write_text(path.read_text().replace("lndex", "Index"))
    assert len(load_items(table, tmp_path / "m")) == 4
    path.write_text(path.read_text().replace("(a) Left (b) Right", "Left or right"))
    with pytest.raises(DataError, match=r"Questions.csv:2: 'Left or right'"):
        load_items(table, tmp_path / "m")


def test_mathvista_asks_the_query_and_reads_by_rule_without_a_judge(tmp_path: Path) -> None:
    table, items = check.mini("MathVista", tmp_path / "m", n=3)
    records = json.loads((tmp_path / "m" / "annot_testmini.json").read_text())
    assert [check.text_of(item) for item in items] == [f"<image>\n{record['query']}" for record in records.values()]
    replies = [f"Step by step.\nAnswer: {item.gold}" for item in items]
    assert check.metrics(table, items, replies)[0].value == 100
    assert check.metrics(table, items, ["no idea"] * 3, "fixed")[0].n_scored == 3
    records["1"]["choices"] = None
    (tmp_path / "m" / "annot_testmini.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match="1: a question to choose from without choices"):
        load_items(table, tmp_path / "m")


def test_mmvet_ends_with_a_space_and_both_files_must_agree(tmp_path: Path) -> None:
    _, items = check.mini("MM-Vet", tmp_path / "m", n=3)
    assert [item.id for item in items] == ["v1_0", "v1_1", "v1_2"] and "<AND>" in items[2].gold
    assert check.text_of(items[1]) == "<image>\nWhat does the sign say? "
    assert items[2].meta["capability"] == ["math", "ocr", "spat"]
    path = tmp_path / "m" / "mm-vet.json"
    path.write_text(path.read_text().replace("What does the sign say?", "What is this?"))
    with pytest.raises(DataError, match="are not the same question"):
        load_items(load_benchmark("MM-Vet"), tmp_path / "m")


def test_realworldqa_and_ocrbench_ask_the_question_as_it_is_and_unpack_images(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, pattern in (("RealWorldQA", "data/test-*-of-00002.parquet"), ("OCRBench", "data/test-*.parquet")):
        table, items = check.mini(name, tmp_path / name)
        paths = sorted((tmp_path / name).glob(pattern))
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        assert [check.text_of(item) for item in items] == [f"<image>\n{row['question']}" for row in rows]
        assert [check.images_of(item)[0].read_bytes() for item in items] == [row["image"]["bytes"] for row in rows]
        pq.write_table(pa.table({"question": ["?"]}), paths[0])
        with pytest.raises(DataError, match=r"cannot be read|has no column"):
            load_items(table, tmp_path / name)
        for path in paths:
            path.unlink()
        with pytest.raises(DataError, match="no file"):
            load_items(table, tmp_path / name)


def test_ocrbench_counts_right_answers_by_type(tmp_path: Path) -> None:
    table, items = check.mini("OCRBench", tmp_path / "m")
    replies = [f"It says {check.right(item)}." if i % 2 else "no" for i, item in enumerate(items)]
    found = {m.name: m.value for m in check.metrics(table, items, replies)}
    assert found["accuracy"] == 50 and len(found) == 11


def test_long_haystacks_lie_in_the_published_tree_and_carry_their_answer(tmp_path: Path) -> None:
    folder = make_mini(LONG[0], tmp_path / "m", n=2)
    path = folder / "val" / "long_mr_128k" / "test_long_mr_image_retrieval_64_128.jsonl"
    record = json.loads(path.read_text().splitlines()[0])
    table = load_benchmark(LONG[0])
    items = load_items(table, folder)
    assert [item.group for item in items[::2]] == [
        "retrieval-image",
        "retrieval-text",
        "reasoning-image",
        "reasoning-text",
    ]
    options = "".join(f"\n{letter}. <image>" for letter in "ABCD")
    assert check.text_of(items[0]) == f"{record['context']}{record['question']}{options}\n{check.LETTER}"
    assert items[0].messages[1]["content"] == [{"type": "text", "text": str(record["answer"])}]
    assert score_item(table, items[0], chr(65 + record["answer"])).value == 1
    assert score_item(table, items[0], str(record["answer"])).value == 0  # the forced token is no answer of the model
    (folder / "image" / "long_mr" / "val").rename(folder / "mm_niah_test_images")
    (folder / "mm_niah_test").mkdir()
    (folder / "mm_niah_test_images").rename(folder / "mm_niah_test" / "images")
    assert load_items(table, folder)[0].id == items[0].id  # the second published place of images
    assert (
        make_mini(LONG[3], tmp_path / "1m", n=1) / "val/long_mr_1m/test_long_mr_text_reasoning_512_1200.jsonl"
    ).is_file()


def test_teacher_forcing_predicts_each_token_of_the_answer_from_all_before_it(tmp_path: Path) -> None:
    """The batched pass equals the plain model on the whole sequence, position by position."""
    import torch

    from vlm.eval.backends.native import Checkpoint
    from vlm.eval.backends.teacher_forcing import TeacherForcedBackend, answer_positions
    from vlm.eval.run.runner import Options, run_evaluation
    from vlm.models.checkpoint.assemble import build
    from vlm.models.checkpoint.load import save_model
    from vlm.models.specs import load_preset

    tokenizer = Path(__file__).parents[1] / "golden" / "data" / "tokenizers" / "internlm2"
    save_model(build(load_preset("tiny-internvl2"), tokenizer=tokenizer, seed=0), tmp_path / "w", tokenizer=tokenizer)
    backend = TeacherForcedBackend(Checkpoint(tmp_path / "w", device="cpu"), stride=16, image_rule={"max_tiles": 12})
    table, data = load_benchmark(LONG[0]), make_mini(LONG[0], tmp_path / "m", n=1)
    item = next(item for item in load_items(table, data) if item.group == "retrieval-text")
    sample = backend.encode(item.id, item.messages)
    at = answer_positions(sample, backend.processor.stop_ids)
    tokenizer_of = backend.processor.tokenizer
    assert tokenizer_of.decode(sample.input_ids[at].tolist(), skip_special=True).strip() == item.gold
    assert (
        sample.input_ids[at[-1] + 1] in backend.processor.stop_ids
        and backend.prompt(item.messages).count(item.gold) > 0
    )
    model = backend.checkpoint.model
    pixels = backend.processor.pixels(sample.pixels)
    ids, positions = torch.from_numpy(sample.input_ids)[None], torch.from_numpy(sample.position_ids)[None]
    with torch.inference_mode():
        logits = model(ids, pixel_values=pixels, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    assert backend.predicted(sample) == logits[0].argmax(-1)[at - 1].tolist()
    summary = run_evaluation(table, backend, tmp_path / "out", Options(stride=16), data=data)
    assert summary["outcomes"] == {"ok": 4} and summary["metrics"][0]["scored"] == 4
    assert summary["provenance"]["decode"]["teacher_forced"] is True
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[1])
    assert row["prompt"].endswith(check.SHORT)  # the given answer is not shown as part of the question
