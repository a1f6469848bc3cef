"""Memory of scoring hardly grows with the predictions, and what lies on the disk gives the same files."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from support.benchmark_check import mini, right, rows_of
from vlm.core.spill import Spilled
from vlm.eval.run.score import aggregate
from vlm.eval.saved.score import score_predictions

BENCH = Path(__file__).parents[2] / "bench"


def test_a_prediction_more_needs_little_memory_more() -> None:
    code = "import sys, score_memory; print(int(score_memory.peak_of('exact', int(sys.argv[1]))['peak_bytes']))"
    few, many = (int(subprocess.check_output([sys.executable, "-c", code, str(n)], cwd=BENCH)) for n in (5_000, 13_000))
    assert (many - few) / 8_000 < 1_000  # 5,000 where each is held; a part is the cache of 32 MB, as it fills


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything beyond three elements lies on the disk."""
    monkeypatch.setattr(Spilled.__init__, "__kwdefaults__", {"held": 3})


def replies(items: list, draw: random.Random) -> list[str | None]:
    return [draw.choice([right(item), "wrong", "", None]) for item in items]


@pytest.mark.parametrize("name", ["POPE", "MME", "MMVP", "ChartQA", "MMMU", "MileBench", "GQA", "MMBench-dev-en"])
def test_metrics_of_rows_on_the_disk_are_those_of_rows_in_memory(name: str, tmp_path: Path) -> None:
    table, items = mini(name, tmp_path)
    rows = rows_of(table, items, replies(items, random.Random(name)))
    for compat in ("upstream", "fixed"):
        assert aggregate(table, Spilled(rows, held=2), compat) == aggregate(table, rows, compat)


def score(table, items, folder: Path, out: Path) -> dict[str, bytes]:
    draw, file = random.Random(1), out.with_suffix(".jsonl")
    file.parent.mkdir()
    rows = [{"id": item.id, "prediction": reply} for item, reply in zip(items, replies(items, draw), strict=True)]
    rows += [rows[4], {**rows[7], "prediction": "other"}, {"id": "nobody", "prediction": "x"}, {"id": "1"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in draw.sample(rows, len(rows))))
    for _ in range(2):  # the second time over the results of the first
        score_predictions(table, [file], out, data=folder, name="theirs")
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name in ("results.jsonl", "summary.json")}


def test_files_scored_from_the_disk_are_those_scored_in_memory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    table, items = mini("POPE", tmp_path / "m")
    held = score(table, items, tmp_path / "m", tmp_path / "held" / "out")
    request.getfixturevalue("spilled")
    assert score(table, items, tmp_path / "m", tmp_path / "spilled" / "out") == held and len(held) == 2
