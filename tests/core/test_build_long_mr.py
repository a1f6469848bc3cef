"""Long-MR: budgets, needles, depths, splits, preview."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import long_world as world_module
from vlm.core.sample.media import image_size, load_image
from vlm.core.sample.records import iter_jsonl, read_record
from vlm.core.synth.long.budget import Budget
from vlm.core.synth.long.long_mr import LONG_TASKS, LongMrOptions
from vlm.core.synth.long.materials import find_sources, paragraphs_of, pixels_hash
from vlm.core.synth.long.mr_document import conversation, prompt
from vlm.core.synth.long.needles import TASKS
from vlm.core.synth.long.units import Unit, place_units
from vlm.core.synth.preview import preview

build, tree = world_module.build, world_module.tree

BUDGETS = tuple(map(Budget.parse, ("1500", "4K", "2K-3K")))
OPTIONS = LongMrOptions(BUDGETS, train=6, val=6, val_share=0.4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_module.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def built(world):
    build(world, world / "built", OPTIONS)
    return world / "built"


def rows(path: Path) -> list[dict]:
    return [record for _, record in iter_jsonl(path)]


@pytest.mark.parametrize("task", TASKS)
def test_budgets_are_met_within_1_percent_when_the_written_files_are_encoded_again(world, built, task):
    encoder = world_module.encoder(world)
    for split, folder in (("train", "train"), ("val", "mm_niah_test")):
        records = rows(built / folder / "annotations" / f"{task}.jsonl")
        assert len(records) == 6
        for i, record in enumerate(records):
            turns = record if split == "train" else conversation(record, "x")
            encoded = encoder.encode(read_record(turns, root=built / folder / "images"), pixels=False)
            meta = record["meta"]
            assert 0.99 * meta["budget"] <= len(encoded) <= meta["budget"]
            assert meta["context_length"] == len(encoded)
            assert meta["context_length_image"] == sum(n + 2 for _, n, _ in encoded.image_spans)
            low, high = ((1500, 1500), (4096, 4096), (2048, 3072))[i % 3]
            assert low <= len(encoded) + 0.01 * high
            assert len(encoded) <= high


def test_the_mm_niah_loader_reads_the_set_and_asks_as_the_training_records_do(built):
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.loaders.haystack import load_mmniah, mmniah_prompt

    items = load_mmniah(load_benchmark("MM-NIAH"), built)
    assert len(items) == 6 * len(TASKS)
    for task in TASKS:
        for record in rows(built / "mm_niah_test" / "annotations" / f"{task}.jsonl"):
            asked, images = mmniah_prompt(record)
            turns = conversation(record, "x")
            assert asked == prompt(record)[0]
            assert turns["image"] == images
            assert turns["conversations"][0]["value"] == record["context"] + asked
            assert record["context"].count("<image>") + record["question"].count("<image>") == len(
                record["images_list"]
            )


def test_a_published_length_is_read_by_the_long_benchmark(world, tmp_path):
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.loaders import load_items

    options = LongMrOptions(
        (Budget.parse("64K-128K"),), tuple(LONG_TASKS), train=0, val=1, val_share=0.4, image_share=0.02
    )
    build(world, tmp_path / "long", options)
    items = load_items(load_benchmark("MM-NIAH-long-128k"), tmp_path / "long")
    assert {item.group for item in items} == set(LONG_TASKS)
    assert all(65536 <= item.meta["context_length"] <= 131072 for item in items)
    file = tmp_path / "long" / "val" / "long_mr_128k" / "test_long_mr_image_retrieval_64_128.jsonl"
    assert preview(file, tmp_path / "page.html") == 1


def cost(world: Path, images: Path, record: dict, text: str | None = None) -> int:
    """Tokens of the beginning `text` of the document, or of all of it."""
    rule = world_module.ruler(world)
    pieces = (record["context"] if text is None else text).split("<image>")
    sizes = [image_size(images / name) for name in record["images_list"][: len(pieces) - 1]]
    return sum(map(rule.tokens, pieces)) + sum(map(rule.image_cost, sizes))


def test_a_text_needle_occurs_once_at_its_noted_tokens_and_depth(world, built):
    encoder = world_module.encoder(world)
    for task in ("retrieval-text", "counting-text", "reasoning-text"):
        for record in rows(built / "mm_niah_test" / "annotations" / f"{task}.jsonl"):
            meta = record["meta"]
            sample = read_record(conversation(record, "x"), root=built / "mm_niah_test" / "images")
            ids = encoder.encode(sample, pixels=False).input_ids
            assert len(meta["needles"]) == len(meta["placed_depth"]) == len(meta["needle_tokens"]) > 0
            for needle, depth, (start, end) in zip(
                meta["needles"], meta["placed_depth"], meta["needle_tokens"], strict=True
            ):
                assert record["context"].count(needle) == 1
                assert encoder.tokenizer.decode(ids[start:end]).strip() == needle
                images = built / "mm_niah_test" / "images"
                before = record["context"][: record["context"].index(needle)]
                assert abs(depth - cost(world, images, record, before) / cost(world, images, record)) < 0.005
            assert meta["placed_depth"] == sorted(meta["placed_depth"])


def test_text_answers_follow_from_the_needles(built):
    for folder in ("train", "mm_niah_test"):
        for task in ("retrieval-text", "counting-text", "reasoning-text"):
            for record in rows(built / folder / "annotations" / f"{task}.jsonl"):
                needles = record["meta"]["needles"]
                if folder == "train":
                    answer = record["conversations"][1]["value"]
                    question = record["conversations"][0]["value"]
                else:
                    question, answer = prompt(record)
                if task == "retrieval-text":
                    assert f"hid a {answer} in" in needles[0]
                    assert needles[0].split(" in the ")[1].rstrip(".") in question
                elif task == "counting-text":
                    counts = [int(word) for n in needles for word in n.split() if word.isdigit()]
                    assert json.loads(answer) == counts
                else:
                    losers = {needle.split()[-1].rstrip(".") for needle in needles}
                    winners = {needle.split()[0] for needle in needles}
                    assert winners - losers == {answer}
                    assert all(name in question for name in winners | losers)


def test_the_right_option_is_the_pasted_picture_and_no_other_source_of_an_option_is_shown(built):
    images = built / "mm_niah_test" / "images"
    parts = {row["id"]: row["parts"] for row in rows(built / "parts" / "val" / "retrieval-image.jsonl")}
    for record in rows(built / "mm_niah_test" / "annotations" / "retrieval-image.jsonl"):
        meta = record["meta"]
        (carrier,) = meta["needles"]
        (box,) = meta["needle_boxes"][carrier]
        pasted = load_image(images / carrier).crop(box).crop((2, 2, box[2] - box[0] - 2, box[3] - box[1] - 2))
        # noise of one tint each: what is compared is the tint
        tints = [np.asarray(load_image(images / name), float).mean((0, 1)) for name in meta["choices_image_path"]]
        distance = [np.abs(tint - np.asarray(pasted, float).mean((0, 1))).sum() for tint in tints]
        assert int(np.argmin(distance)) == record["answer"]
        assert min(distance) < 15
        options = {s for part in parts[record["id"]] if part["kind"] == "option" for s in part["sources"]}
        assert len(options) == 4
        shown = [s for part in parts[record["id"]] if part["kind"] == "image" for s in part["sources"]]
        assert not options & set(shown)


def test_counts_of_pasted_pictures_follow_the_order_of_the_document(built):
    for record in rows(built / "mm_niah_test" / "annotations" / "counting-image.jsonl"):
        boxes = record["meta"]["needle_boxes"]
        document = record["images_list"][:-1]
        assert record["answer"] == [len(boxes.get(name, [])) for name in document]
        assert max(record["answer"]) >= 1
        for name, places in boxes.items():
            size = load_image(built / "mm_niah_test" / "images" / name).size
            for left, top, right, bottom in places:
                assert 0 <= left < right <= size[0]
                assert 0 <= top < bottom <= size[1]
            for first, second in pairwise(places):
                assert first[2] <= second[0] or first[3] <= second[1]


def test_a_missing_piece_fits_and_the_camera_moves_as_answered(built):
    images = built / "mm_niah_test" / "images"
    parts = {row["id"]: row["parts"] for row in rows(built / "parts" / "val" / "reasoning-image.jsonl")}
    for record in rows(built / "mm_niah_test" / "annotations" / "reasoning-image.jsonl"):
        needles = [part for part in parts[record["id"]] if part["kind"] == "needle"]
        if record["meta"]["choices"]:
            first, second = (part["window"] for part in needles)
            assert record["meta"]["choices"][record["answer"]] == f"to the {'right' if second > first else 'left'}"
            assert needles[0]["sources"] == needles[1]["sources"]
            continue
        options = [part for part in parts[record["id"]] if part["kind"] == "option"]
        same = [option["sources"] == needles[0]["sources"] for option in options]
        assert same == [k == record["answer"] for k in range(2)]
        (box,) = record["meta"]["needle_boxes"][needles[0]["file"]]
        hole = np.asarray(load_image(images / needles[0]["file"]).crop(box), float)[8:-8, 8:-8]
        assert np.abs(hole - 128).max() < 12


def test_depths_cover_the_document(world, tmp_path):
    options = LongMrOptions((Budget.parse("2K"),), ("retrieval-text",), train=20, val=0, val_share=0.4)
    build(world, tmp_path / "d", options)
    records = rows(tmp_path / "d" / "train" / "annotations" / "retrieval-text.jsonl")
    depths = sorted(record["meta"]["placed_depth"][0] for record in records)
    for i, depth in enumerate(depths):
        assert abs(depth - (i + 0.5) / 20) < 0.06


def test_hidden_units_are_at_their_depths():
    document = place_units([Unit(str(i), 10) for i in range(98)], [(0.75, Unit("b", 10)), (0.25, Unit("a", 10))])
    order = [unit.text for unit in document]
    assert order.index("a") == 24
    assert order.index("b") == 74
    assert place_units([], [(0.5, Unit("a", 1))])[0].text == "a"


def test_train_and_val_share_no_source_and_every_part_has_one(built):
    listed = json.loads((built / "sources.json").read_text())["sources"]
    split = {source["sha256"]: source["split"] for source in listed}
    assert {source["licence"] for source in listed} == {None}
    for name in ("train", "val"):
        for task in TASKS:
            for row in rows(built / "parts" / name / f"{task}.jsonl"):
                assert {"text", "image", "needle"} >= {p["kind"] for p in row["parts"]} - {"question", "option"}
                for part in row["parts"]:
                    made_of = part.get("sources", [part["source"]] if "source" in part else [])
                    assert made_of or part["kind"] == "needle"
                    assert all(split[digest] == name for digest in made_of)
    files = set(json.loads((built / ".vlm-manifest.json").read_text())["files"])
    assert files == set(tree(built)) - {".vlm-manifest.json"}


def test_parts_give_the_exact_characters_and_tokens(world, built):
    encoder = world_module.encoder(world)
    parts = {row["id"]: row["parts"] for row in rows(built / "parts" / "val" / "retrieval-text.jsonl")}
    for record in rows(built / "mm_niah_test" / "annotations" / "retrieval-text.jsonl"):
        sample = read_record(conversation(record, "x"), root=built / "mm_niah_test" / "images")
        spans = [[first - 1, first + n + 1] for first, n, _ in encoder.encode(sample, pixels=False).image_spans]
        listed = parts[record["id"]]
        assert [part["tokens"] for part in listed if part["kind"] == "image"] == spans
        assert listed[0]["characters"][0] == 0
        for before, after in pairwise(listed):
            assert before["characters"][1] == after["characters"][0]
        for part in listed:
            start, end = part["characters"]
            if part["kind"] == "needle":
                assert record["context"][start:end].strip() == record["meta"]["needles"][0]
            if part["kind"] == "image":
                assert record["context"][start:end].strip() == "<image>"


def test_the_split_depends_on_the_pixels_not_on_the_file(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 130, 3)).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.tiff")
    picture.save(tmp_path / "c.png", compress_level=0)
    assert len({pixels_hash(tmp_path / name)[0] for name in ("a.png", "b.tiff", "c.png")}) == 1
    (tmp_path / "x.png").write_bytes(b"no picture")
    (tmp_path / "t.txt").write_text("The cat sleeps in the garden today and the dog sleeps there too, all day long.")
    found = find_sources([tmp_path], [tmp_path], val_share=0.5)
    assert len(found.images) == 1
    assert sorted(reason for _, reason in found.skipped)[0].startswith("same content as")
    assert len(found.skipped) == 3


def test_paragraphs_of_prose_leave_out_everything_else():
    text = (
        "Heading\n=======\n\nparameter : int\n\n- item\n\n" + "The little penguin sleeps in the garden and waits. " * 3
    )
    assert paragraphs_of(text) == ()
    good = "The value of the function is large here. It is small near the border of the domain, as expected."
    assert paragraphs_of(f"{text}\n\n{good}\n\n>>> code()") == (
        ("The value of the function is large here.", "It is small near the border of the domain, as expected."),
    )
    assert paragraphs_of(f"{good} <image> {good}") == ()


def test_the_preview_marks_each_needle_and_finds_the_images(built, tmp_path):
    for task in TASKS:
        path = built / "mm_niah_test" / "annotations" / f"{task}.jsonl"
        assert preview(path, tmp_path / "page.html", count=2) == 2
        page = (tmp_path / "page.html").read_text()
        shown = rows(path)[::3]
        needles = [needle for record in shown for needle in record["meta"]["needles"]]
        assert page.count('class="needle"') + page.count("shot needle") == len(needles)
        assert page.count('title="depth') == len(needles)
        boxes = sum(len(b) for record in shown for b in record["meta"]["needle_boxes"].values())
        assert page.count('<i style="left:') == boxes
        assert "http" not in page
