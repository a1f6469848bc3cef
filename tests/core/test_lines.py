"""Line formats end lines at a newline alone, whatever else a reply, a reason or a name holds."""

import ast
import json
from pathlib import Path

import pytest

from vlm.core.home import split_lines
from vlm.core.ledger import DroppedRecord, write_ledger
from vlm.core.sample.records import iter_jsonl
from vlm.eval.run.outcomes import Outcome, OutcomeLog, read_outcomes
from vlm.eval.saved.predictions import read_predictions
from vlm.train.run.metrics import Log

MARKS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]
"""What `str.splitlines` takes for the end of a line, and no line format does."""

SOURCES = sorted((Path(__file__).parents[2] / "packages").glob("*/src/**/*.py"))
MESSAGES = ("error", "stderr", "reason", "log")
"""Words in what may be cut by `splitlines`: texts for people, of which a message shows the first line."""


@pytest.mark.parametrize("mark", MARKS)
def test_predictions_are_read_back_as_they_were_written(mark: str, tmp_path: Path) -> None:
    rows = [{"id": str(i), "prediction": f"yes{mark}because"} for i in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
    assert [json.loads(line) for line in split_lines(text)] == rows
    found = read_predictions([tmp_path / "p.jsonl"], []).predictions
    assert [one.reply for one in found] == [row["prediction"] for row in rows]


@pytest.mark.parametrize("mark", MARKS)
def test_replies_in_the_text_files_of_mme_are_read_whole(mark: str, tmp_path: Path) -> None:
    (tmp_path / "OCR.txt").write_bytes("".join(f"1.jpg\tQ{n}?\tYes\tyes{mark}it is\r\n" for n in (1, 2)).encode())
    found = read_predictions([tmp_path / "OCR.txt"], []).predictions
    assert [one.reply for one in found] == [f"yes{mark}it is"] * 2


@pytest.mark.parametrize("mark", MARKS)
def test_outcomes_ledgers_and_metrics_are_read_back(mark: str, tmp_path: Path) -> None:
    said = f"a{mark}b"
    outcome = Outcome("key", "1", "ok", completion=said)
    with OutcomeLog(tmp_path / "outcomes.jsonl") as log:
        log.append([outcome, Outcome("other", said, "error", detail=said)])
    known = read_outcomes([tmp_path / "outcomes.jsonl"])
    assert known["key"] == outcome and known["other"].detail == said
    write_ledger(tmp_path / "ledger.jsonl", [DroppedRecord(f"{said}:1", "read", said)] * 2)
    assert [record for _, record in iter_jsonl(tmp_path / "ledger.jsonl")] == [
        {"id": f"{said}:1", "stage": "read", "reason": said}
    ] * 2
    metrics = Log(tmp_path / "metrics.jsonl")
    metrics.write(step=0, note=said)
    metrics.write(step=1, note=said)
    metrics.cut(1)
    assert metrics.read() == [{"step": 0, "note": said}]


def test_lines_end_at_a_newline_with_or_without_a_carriage_return() -> None:
    assert split_lines("") == [] and split_lines("\n") == [""]
    assert split_lines("a\r\nb\nc") == ["a", "b", "c"] and split_lines("a\rb\n\n") == ["a\rb", ""]


def test_no_line_format_is_read_by_splitlines() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "splitlines":
                cut = ast.unparse(node.value)
                found += [f"{path.name}:{node.lineno}: {cut}"] if not any(word in cut for word in MESSAGES) else []
    assert len(SOURCES) > 100 and found == [], "use vlm.core.home.split_lines"
