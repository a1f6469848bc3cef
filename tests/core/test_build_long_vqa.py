"""Long-VQA: the asked picture among many, budgets, splits, pages, and what does not fit."""

import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from support import long_world as world_module
from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.media import load_image
from vlm.core.sample.records import iter_jsonl, read_record
from vlm.core.synth.long.budget import Budget
from vlm.core.synth.long.long_vqa import LongVqaOptions, build_long_vqa
from vlm.core.synth.long.materials import pixels_hash
from vlm.core.synth.preview import preview
from vlm.core.synth.vqa_records import vqa_record, write_jsonl

tree = world_module.tree

OPTIONS = LongVqaOptions("noise", (Budget(800, 800), Budget(850, 950)), train=5, val=3, val_share=0.45)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_module.make_world(tmp_path_factory.mktemp("world"), images=90)


def build(world, out, options=OPTIONS, files=None, **more):
    files = files or [world / "set" / "vqa.jsonl"]
    return build_long_vqa(out, files, options, world_module.ruler(world), outside=[world], **more)


def records(out: Path, split: str) -> list[tuple[Path, dict]]:
    found = [(path, row) for path in sorted(out.rglob(f"{split}_long_vqa_*.jsonl")) for _, row in iter_jsonl(path)]
    return [(path, row) for path, row in found if "parts" not in path.parts]


def images(out: Path, split: str) -> Path:
    return out / "image" / "long_vqa" / "paste" / "noise" / split


@pytest.mark.parametrize("paste", [1, 3])
def test_each_question_is_about_one_picture_among_many_of_the_same_split(world, tmp_path, paste):
    out = tmp_path / "out"
    budgets = OPTIONS.budgets if paste == 1 else (Budget(600, 600), Budget(650, 750))
    assert build(world, out, replace(OPTIONS, paste=paste, budgets=budgets)) == "built"
    answers = {}
    for i in range(90):
        path = world / "images" / f"{i}.png"
        answers[pixels_hash(path)[0]] = (i, path)
    shown = {"train": set(), "val": set()}
    encoder = world_module.encoder(world)
    for split, expected in (("train", 5), ("val", 3)):
        found = records(out, split)
        assert len(found) == 2 * expected
        parts = {row["id"]: row["parts"] for p in out.glob(f"parts/{split}_*") for _, row in iter_jsonl(p)}
        for _, record in found:
            meta = record["metadata"]
            encoded = encoder.encode(read_record(record, root=images(out, split)), pixels=False)
            assert len(encoded) == meta["context_length"]
            assert 0.99 * meta["budget"] <= len(encoded) <= meta["budget"]
            human, answer = (turn["value"] for turn in record["conversations"])
            number = int(re.search(r"Question about Image (\d+): ", human)[1])
            listed = parts[record["id"]]
            assert [part["number"] for part in listed] == list(range(1, len(listed) + 1))
            assert len(listed) > 5
            asked = next(part for part in listed if part["number"] == number)
            i, path = answers[asked["pixels"]]
            assert answer in (f"noise {i}", str(i))
            assert asked["kind"] == "needle"
            assert sum(part["pixels"] == asked["pixels"] for part in listed) == 1
            for note in re.findall(r"^Note on Image (\d+): (.*)$", human, re.MULTILINE):
                part = next(part for part in listed if part["number"] == int(note[0]))
                assert note[1].endswith(f" {answers[part['pixels']][0]}")
                assert part["number"] != number
            (name,) = meta["needles"]
            assert name.endswith(asked["file"])
            tint = np.asarray(load_image(path), float).mean((0, 1))
            picture = load_image(images(out, split) / name)
            if "box" in asked:
                picture = picture.crop(asked["box"])
            assert np.abs(np.asarray(picture, float).mean((0, 1)) - tint).max() < 6
            spans = [[first - 1, first + n + 1] for first, n, _ in encoded.image_spans]
            assert asked["tokens"] == spans[record["image"].index(name)] == meta["needle_tokens"][0]
            shown[split] |= {part["pixels"] for part in listed}
    assert not shown["train"] & shown["val"]


def test_positions_of_the_asked_picture_spread_and_pictures_are_the_unchanged_files(world, tmp_path):
    options = LongVqaOptions("noise", (Budget(800, 800),), train=24, val=0, val_share=0.1)
    build(world, tmp_path / "out", options)
    depths = sorted(row["metadata"]["placed_depth"][0] for _, row in records(tmp_path / "out", "train"))
    assert depths[0] < 0.35
    assert depths[-1] > 0.7
    assert max(b - a for a, b in pairwise(depths)) < 0.2
    originals = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (world / "images").iterdir()}
    copied = [p for p in (tmp_path / "out" / "image").rglob("*.png") if "-" not in p.stem]
    assert copied
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() in originals for p in copied)


def test_names_follow_the_published_tree_and_workers_do_not_matter(world, tmp_path):
    options = LongVqaOptions("chartqa", (Budget(768, 1024),), train=9, val=1, val_share=0.45)
    build(world, tmp_path / "one", options)
    build(world, tmp_path / "two", options, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    names = tree(tmp_path / "one")
    assert "val/long_vqa_1k/val_long_vqa_chartqa_768_1.jsonl" in names
    assert "annotation/long_vqa_1k/train_long_vqa_chartqa_768_1.jsonl" in names
    assert any(name.startswith("image/long_vqa/paste/chartqa/val/") for name in names)
    assert build(world, tmp_path / "one", options) == "present"
    row = records(tmp_path / "one", "val")[0][1]
    assert set(row) == {"id", "image", "conversations", "metadata"}
    assert isinstance(row["image"], list)
    assert preview(records(tmp_path / "one", "val")[0][0], tmp_path / "page.html") == 1
    assert (tmp_path / "page.html").read_text().count("shot needle") == 1


def test_several_sets_in_one_folder_are_read_by_the_long_vqa_benchmark(world, tmp_path):
    from vlm.eval.benchmark import load_benchmark
    from vlm.eval.loaders import load_items

    for task in ("chartqa", "docvqa"):
        budgets = (Budget.parse("16K-32K"),)
        options = LongVqaOptions(task, budgets, train=0, val=1, val_share=0.45, repeat_images=True)
        assert build(world, tmp_path, options) == "built"
        assert build(world, tmp_path, options) == "present"
    assert build(world, tmp_path, replace(options, task="chartqa")) == "present"
    table = load_benchmark("Long-VQA-32k")
    table = table.model_copy(update={"options": table.options | {"tasks": ["chartqa", "docvqa"]}})
    items = load_items(table, tmp_path)
    assert [item.group for item in items] == ["chartqa", "docvqa"]
    assert all(16384 <= item.meta["context_length"] <= 32768 for item in items)


def test_too_few_sources_are_an_error_and_nothing_is_written(world, tmp_path):
    out = tmp_path / "out"
    few = [vqa_record(f"q{i}", f"../images/{i}.png", [("What?", "x")]) for i in range(8)]
    write_jsonl(world / "set" / "few.jsonl", few)
    options = LongVqaOptions("few", (Budget(4096, 4096),), train=1, val=0, val_share=0.0)
    with pytest.raises(DataError, match=r"8 source images fill \d+ of 4096 tokens"):
        build(world, out, options, [world / "set" / "few.jsonl"])
    with pytest.raises(ConfigError, match="do not hold the asked picture"):
        build(world, out, LongVqaOptions("few", (Budget(230, 230),), train=1, val=0, val_share=0.0))
    with pytest.raises(DataError, match="no question for val"):
        build(world, out, LongVqaOptions("few", (Budget(500, 500),), train=0, val=1, val_share=0.0))
    write_jsonl(world / "set" / "none.jsonl", [{"id": "t", "conversations": few[0]["conversations"][1:] * 2}])
    with pytest.raises(DataError):
        build(world, out, files=[world / "set" / "none.jsonl"])
    assert not out.exists()


def test_more_distractors_come_from_folders_or_from_repeats_on_request(world, tmp_path):
    few = world / "set" / "few.jsonl"
    write_jsonl(few, [vqa_record(f"q{i}", f"../images/{i}.png", [("What?", "x")]) for i in range(8)])
    options = LongVqaOptions("few", (Budget(900, 900),), train=2, val=0, val_share=0.0)
    build(world, tmp_path / "more", options, [few], images=[world / "images"])
    sources = json.loads((tmp_path / "more" / "sources-few.json").read_text())["sources"]
    assert len(sources) == 90
    build(world, tmp_path / "again", replace(options, repeat_images=True), [few])
    for _, row in iter_jsonl(next((tmp_path / "again" / "parts").iterdir())):
        pixels = [part["pixels"] for part in row["parts"]]
        asked = next(part["pixels"] for part in row["parts"] if part["kind"] == "needle")
        assert len(set(pixels)) < len(pixels)
        assert pixels.count(asked) == 1
