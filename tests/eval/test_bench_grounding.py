"""RefCOCO, RefCOCO+, RefCOCOg: eight splits, two systems' prompts and scales, official files to items to scores."""

import json
from pathlib import Path

import pytest
from PIL import Image

from support import benchmark_check as check
from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark, tables
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini

COUNTS = {
    "RefCOCO-val": 10834,
    "RefCOCO-testA": 5657,
    "RefCOCO-testB": 5095,
    "RefCOCO+-val": 10758,
    "RefCOCO+-testA": 5726,
    "RefCOCO+-testB": 4889,
    "RefCOCOg-val": 4896,
    "RefCOCOg-test": 9602,
}


def rewrite(path: Path, change) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_eight_splits_each_with_its_own_count_and_published_numbers() -> None:
    found = {load_benchmark(name).name: load_benchmark(name) for name in tables() if name.startswith("refcoco")}
    assert {name: table.counts.groups for name, table in found.items()} == {
        name: {name.rpartition("-")[2]: n} for name, n in COUNTS.items()
    }
    for size, average in (("768", 80.6), ("1024", 81.4), ("1536", 82.5)):  # published for 1536: 82.3
        values = [p.value for table in found.values() for p in table.published if p.system == f"ConvLLaVA-{size}"]
        assert len(values) == 8 and round(sum(values) / 8, 1) == pytest.approx(average)


@pytest.mark.parametrize("name", COUNTS)
def test_the_miniature_asks_the_published_prompts(name: str, tmp_path: Path) -> None:
    table, items = check.mini(name, tmp_path / "m")
    assert len(items) == 20 and {item.group for item in items} == {name.rpartition("-")[2]}
    dataset, _, split = name.rpartition("-")
    record = json.loads((tmp_path / "m" / f"{dataset.lower()}_{split}.jsonl").read_text().splitlines()[0])
    start = "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: "
    assert check.text_of(items[0]) == f"{start}<ref>{record['sent']}</ref>"
    theirs = load_items(load_benchmark(name).for_family("convllava"), tmp_path / "m")
    assert check.text_of(theirs[0]) == f"{start}{record['sent']}."
    assert table.max_new_tokens == 100 and items[0].meta["hw"] == [80, 240]
    image = Image.open(check.images_of(items[0])[0])
    left, top, right, bottom = items[0].gold
    assert image.size == (240, 80) and image.format == "JPEG"
    middle = image.convert("RGB").getpixel(((left + right) // 2, (top + bottom) // 2))
    assert min(middle) < 250  # the box holds a shape, not the ground


def test_each_system_reads_boxes_on_its_own_scale(tmp_path: Path) -> None:
    ours, items = check.mini("RefCOCO-val", tmp_path / "m")
    theirs = load_benchmark("RefCOCO-val").for_family("convllava")
    assert (ours.scorer, theirs.scorer) == ("refcoco_internvl", "refcoco_convllava")
    perfect, square = [], []
    for item in items:
        height, width = item.meta["hw"]
        left, top, right, bottom = item.gold
        perfect.append(str([round(1000 * v / s) for v, s in zip(item.gold, [width, height] * 2, strict=True)]))
        pad = (width - height) // 2
        square.append(str([v / width for v in (left, top + pad, right, bottom + pad)]))
    for table, replies, value in (
        (ours, perfect, 100),
        (theirs, square, 100),
        (theirs, perfect, 0),
        (ours, ["no box"] * 20, 0),
        (ours, [""] * 20, 0),
    ):
        for compat in ("upstream", "fixed"):
            headline = check.metrics(table, items, replies, compat)[0]
            assert (headline.name, headline.value, headline.n_scored) == ("precision@1", value, 20)


def test_a_short_download_and_a_broken_box_are_refused(tmp_path: Path) -> None:
    folder = make_mini("RefCOCO+-testA", tmp_path / "m", n=4)
    path = folder / "refcoco+_testA.jsonl"
    rewrite(path, lambda rows: rows.pop())
    with pytest.raises(DataError, match=r"short download.*testA: 3 of 4"):
        load_items(load_benchmark("RefCOCO+-testA"), folder)
    (folder / "mini.json").unlink()
    with pytest.raises(DataError, match="testA: 3 of 5726"):
        load_items(load_benchmark("RefCOCO+-testA"), folder)
    rewrite(path, lambda rows: rows[1].update(bbox=[5, 5, 5, 9]))
    with pytest.raises(DataError, match=r"refcoco\+_testA.jsonl:2: bbox \[5, 5, 5, 9\]"):
        load_items(load_benchmark("RefCOCO+-testA"), folder)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (make_mini("RefCOCOg-val", tmp_path / str(i), seed=s, n=4) for i, s in enumerate((5, 5, 6)))
    assert check.digest(first) == check.digest(again) != check.digest(other)
