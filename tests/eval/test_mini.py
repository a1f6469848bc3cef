"""Miniatures: official format, deterministic, answerable, replaced only by another miniature."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini
from vlm.eval.run.score import score_item

NAMES = ["easyVQA", "POPE", "ChartQA", "MileBench", "MM-NIAH", "digit-haystack-1x", "digit-haystack-2x", "mini-v2pe"]


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_loads_and_its_own_answers_score_full(name: str, tmp_path: Path) -> None:
    table = load_benchmark(name)
    items = load_items(table, make_mini(name, tmp_path / "a", seed=3))
    assert 18 <= len(items) <= 60
    for item in items:
        gold = chr(65 + item.gold) if isinstance(item.gold, int) else str(item.gold)
        for compat in ("upstream", "fixed"):
            assert score_item(table, item, gold, compat).value == pytest.approx(1.0, abs=1e-7), (item, compat)
    for part in items[0].messages[0]["content"]:
        if part["type"] == "image":
            Image.open(part["path"]).load()


@pytest.mark.parametrize("name", ["POPE", "MileBench", "MM-NIAH"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name: str, tmp_path: Path) -> None:
    first, again, other = (make_mini(name, tmp_path / str(i), seed=seed, n=2) for i, seed in enumerate((5, 5, 6)))
    assert digest(first) == digest(again) != digest(other)


def test_haystacks_spread_over_lengths_and_depths(tmp_path: Path) -> None:
    items = load_items(load_benchmark("MM-NIAH"), make_mini("MM-NIAH", tmp_path / "m", seed=0))
    lengths = [item.meta["context_length"] for item in items]
    assert min(lengths) >= 1000 and max(lengths) >= 8000 and len({int(x) // 2000 for x in lengths}) >= 3
    assert len({str(item.meta["placed_depth"]) for item in items}) >= 5
    short, long = (
        load_items(load_benchmark(f"digit-haystack-{v}"), make_mini(f"digit-haystack-{v}", tmp_path / v))
        for v in ("1x", "8x")
    )
    ratio = sum(i.meta["context_length"] for i in long) / sum(i.meta["context_length"] for i in short)
    assert ratio == pytest.approx(8, rel=0.02)
    assert len({i.meta["placed_depth"][0] for i in short}) == 5


def test_a_complete_miniature_is_kept_and_another_one_replaces_it(tmp_path: Path) -> None:
    folder = make_mini("ChartQA", tmp_path / "c", seed=0, n=2)
    before = (folder / "mini.json").stat().st_mtime_ns
    assert (make_mini("chartqa", folder, seed=0, n=2) / "mini.json").stat().st_mtime_ns == before
    make_mini("ChartQA", folder, seed=0, n=3)
    assert len(load_items(load_benchmark("ChartQA"), folder)) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_real_data_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "llava_pope_test.jsonl").write_text("{}")
    with pytest.raises(DataError, match="no miniature"):
        make_mini("POPE", tmp_path / "pope")
    assert (tmp_path / "pope" / "llava_pope_test.jsonl").read_text() == "{}"
