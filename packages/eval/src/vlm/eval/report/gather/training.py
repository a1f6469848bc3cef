"""Find training stages below run folders: their metrics and their ledgers."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.sample.records import iter_jsonl
from vlm.eval.saved.evaluations import find_files, finite, read_object


@dataclass(frozen=True)
class Stage:
    """One `metrics.jsonl`: one record per step, in order; of a repeated step the last.

    Attributes:
        run: The folder above `train/`.
        name: The stage's folder.
        records: The lines of metrics.jsonl.
        ledger: Samples in, used, dropped, truncated; empty while the stage trains.
        reasons: (what, reason) -> samples.
    """

    run: str
    name: str
    records: list[dict[str, Any]]
    ledger: dict[str, int]
    reasons: dict[tuple[str, str], int]


def find_stages(folders: Iterable[Path]) -> list[Stage]:
    """Return all training stages below `folders`, each once, in the order of their paths.

    Raises:
        DataError: A line that is not JSON; names file and line.
    """
    found = {path.resolve() for folder in folders for path in find_files(folder, "metrics.jsonl")}
    return [_read_stage(path) for path in sorted(found)]


def _read_stage(path: Path) -> Stage:
    by_step: dict[int, dict[str, Any]] = {}
    for line, record in iter_jsonl(path):
        if not isinstance(record, dict) or finite(record.get("step")) is None:
            raise DataError(f"{path}:{line}: not a line of metrics", expected="an object with a step")
        by_step[record["step"]] = record
    parts = path.parent.parts
    run = parts[-3] if len(parts) > 2 and parts[-2] == "train" else parts[-2] if len(parts) > 1 else ""
    summary, log = path.parent / "summary.json", path.parent / "ledger.jsonl"
    fix = "train again; the stage is written again"
    ledger = read_object(summary, fix).get("ledger", {}) if summary.exists() else {}
    entries = [entry for _, entry in iter_jsonl(log)] if log.exists() else []
    reasons = Counter((str(e.get("what")), _general_reason(e)) for e in entries)
    records = [by_step[step] for step in sorted(by_step)]
    return Stage(run, path.parent.name, records, ledger, dict(reasons.most_common()))


def _general_reason(entry: dict[str, Any]) -> str:
    """Return the first line of a reason without the sample's name and paths, so that equal faults count as one."""
    lines = str(entry.get("reason", "")).splitlines() or [""]
    return re.sub(r"(/[^\s:]+)+(:\d+)?", "FILE", lines[0].replace(str(entry.get("id", "")) or "\0", "")).strip(": ")
