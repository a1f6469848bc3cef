"""A benchmark of the catalogue in a published tree: adopted when its loader finds every item, evaluated from there."""

from pathlib import Path

import pytest

from vlm.cli.commands.data_adopt import adopt
from vlm.cli.find import find_benchmark_files
from vlm.cli.options import BenchmarkFiles
from vlm.core.errors import DataError
from vlm.core.fetch.catalogue import find_entry, load_catalogue
from vlm.core.fetch.fetch import fetch
from vlm.core.fetch.installed import entry_state
from vlm.eval.benchmark import load_benchmark
from vlm.eval.loaders import load_items
from vlm.eval.mini import make_mini


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tree with MMVP in its full number of items, without the marks of a miniature."""
    tree = tmp_path_factory.mktemp("published")
    folder = make_mini("MMVP", tree / "data/MMVP", n=150)
    for name in ("mini.json", ".vlm-mini.json"):
        (folder / name).unlink()
    return tree


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    return tmp_path


def take(tree: Path, *names: str) -> None:
    adopt(tree, list(names) or None, dry_run=False, max_lost=0.01, verify=False, catalogue=None)


def test_an_adopted_benchmark_is_present_to_download_list_and_evaluation(home: Path, tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    take(tree)
    entry, table = find_entry("MMVP", load_catalogue()), load_benchmark("MMVP")
    assert entry_state(entry) == "present" == fetch(entry)
    assert len(load_items(table, find_benchmark_files(table, BenchmarkFiles()))) == 300
    assert sorted(tree.rglob("*")) == before


def test_one_missing_picture_is_named_and_nothing_is_written(home: Path, tree: Path) -> None:
    picture = tree / "data/MMVP/MMVP Images/7.jpg"
    held = picture.read_bytes()
    picture.unlink()
    try:
        with pytest.raises(DataError, match=r"7\.jpg is missing; 1 of 300 items"):
            take(tree, "MMVP")
    finally:
        picture.write_bytes(held)
    assert not list(home.iterdir())
