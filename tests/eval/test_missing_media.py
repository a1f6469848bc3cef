"""A missing picture or video is said before the run, or marks its items, never the whole benchmark."""

import json
from pathlib import Path

import pytest

from support import fake_backend as fake
from vlm.core.errors import DataError
from vlm.eval.benchmark import load_benchmark
from vlm.eval.mini import make_mini
from vlm.eval.run.runner import Options, run_evaluation


class Letters(fake.FakeBackend):
    """Answers every question with (A)."""

    def answer(self, encoded, *, max_new_tokens, min_new_tokens):
        self.asked.append([item_id for item_id, _ in encoded])
        return [fake.Reply("(A)", True) for _ in encoded]


@pytest.fixture
def mvbench(tmp_path: Path) -> Path:
    """MVBench without a video, and without a folder of frames."""
    folder = make_mini("MVBench", tmp_path / "data", n=2)
    rows = json.loads((folder / "json" / "action_sequence.json").read_text())
    next(folder.rglob(rows[0]["video"])).unlink()
    frames = next(path for path in folder.rglob("*") if path.is_dir() and (path / "00001.jpg").exists())
    for frame in frames.iterdir():
        frame.unlink()
    frames.rmdir()
    return folder


def evaluate(tmp_path: Path, data: Path, **options):
    backend = Letters()
    summary = run_evaluation(
        load_benchmark("MVBench"), backend, tmp_path / "out", Options(batch_size=8, **options), data=data
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    return summary, rows, [item for batch in backend.asked for item in batch]


def test_the_message_says_how_many_and_where_and_its_fix_works(tmp_path: Path, mvbench: Path) -> None:
    with pytest.raises(DataError, match=r"json:0: image .* is missing; 2 of 40 items of MVBench") as error:
        evaluate(tmp_path, mvbench)
    assert "Action Sequence 1" in error.value.found and not (tmp_path / "out" / "results.jsonl").exists()
    assert "--allow-missing 2" in error.value.fix
    with pytest.raises(DataError, match="lack a picture or video"):
        evaluate(tmp_path, mvbench, allow_missing=1)
    summary, rows, asked = evaluate(tmp_path, mvbench, allow_missing=2)
    lost = [row for row in rows if row["outcome"] == "error"]
    assert len(lost) == 2 and len(asked) == 38 and not {row["id"] for row in lost} & set(asked)
    assert all("is missing" in row["why"] and row["score"] is None is row["completion"] for row in lost)
    assert summary["outcomes"] == {"error": 2, "ok": 38}
    assert (summary["metrics"][0]["scored"], summary["metrics"][0]["total"]) == (38, 40)


def test_files_that_come_later_are_asked_and_the_rest_is_kept(tmp_path: Path, mvbench: Path) -> None:
    _, before, _ = evaluate(tmp_path, mvbench, allow_missing=2)
    whole = make_mini("MVBench", tmp_path / "whole", n=2)
    for path in whole.rglob("*"):
        if path.is_file() and not (target := mvbench / path.relative_to(whole)).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    from vlm.eval.keys import file_hash

    file_hash.cache_clear()
    summary, _, asked = evaluate(tmp_path, mvbench)
    assert summary["outcomes"] == {"ok": 40}
    assert sorted(asked) == sorted(row["id"] for row in before if row["outcome"] == "error")


def test_the_blind_control_gives_no_item_a_file_that_is_missing(tmp_path: Path) -> None:
    data = make_mini("POPE", tmp_path / "pope")
    next(path for path in sorted(data.rglob("*")) if path.suffix in (".jpg", ".png", ".bmp")).unlink()
    options = Options(shuffle_images=True, allow_missing=50)
    run_evaluation(load_benchmark("POPE"), Letters(), tmp_path / "out", options, data=data)
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    lost = [row for row in rows if row["outcome"] == "error"]
    assert lost and all(not Path(row["images"][0]).exists() for row in lost)
    assert all(Path(row["images"][0]).exists() for row in rows if row not in lost)
