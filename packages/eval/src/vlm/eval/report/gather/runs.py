"""Find what a run folder holds besides evaluations: training stages, their ledgers, and the workflow's own records."""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.sample.records import iter_jsonl
from vlm.eval.report.gather.collect import files, number, read_json

MEASURES = ("s", "max_rss", "cpu_time")
"""Columns of Snakemake's benchmark files that are shown: wall seconds, largest resident memory in MB, CPU seconds."""


@dataclass(frozen=True)
class Stage:
    """One `metrics.jsonl`: `name` is its folder, `run` the one above `train/`; one record per step, the last wins.

    `ledger`: samples in, used, dropped, truncated (empty while it trains). `reasons`: (what, reason) -> samples.
    """

    run: str
    name: str
    records: list[dict[str, Any]]
    ledger: dict[str, int]
    reasons: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Job:
    """One benchmark file of the workflow: wall seconds, MB and CPU seconds, None where Snakemake could not measure."""

    run: str
    rule: str
    name: str
    seconds: float | None
    max_rss_mb: float | None
    cpu_seconds: float | None


@dataclass(frozen=True)
class Graph:
    """Rules and which needs which, as `snakemake --rulegraph` draws them."""

    run: str
    rules: dict[str, str]
    edges: list[tuple[str, str]]


def find_stages(folders: Iterable[Path]) -> list[Stage]:
    """All training stages below `folders`, each once, in the order of their paths.

    Raises:
        DataError: a line that is not JSON; names file and line.
    """
    found = {path.resolve() for folder in folders for path in files(folder, "metrics.jsonl")}
    return [_stage(path) for path in sorted(found)]


def find_jobs(folders: Iterable[Path]) -> list[Job]:
    """The rows of all `benchmarks/**/*.tsv` below `folders`: rule = first folder, or the file itself.

    Raises:
        DataError: a file without the columns that Snakemake writes.
    """
    found = {
        path.resolve()
        for folder in folders
        for path in files(folder, "*.tsv")
        if "benchmarks" in path.relative_to(folder).parts[:-1]
    }
    return [job for path in sorted(found) for job in _jobs(path)]


def find_graphs(folders: Iterable[Path]) -> list[Graph]:
    """The rule graphs (`rulegraph.dot`) below `folders`."""
    found = {path.resolve() for folder in folders for path in files(folder, "rulegraph.dot")}
    return [read_graph(path) for path in sorted(found)]


def find_drawings(folders: Iterable[Path]) -> list[Path]:
    """Rule graphs that are there as a drawing alone (`rulegraph.svg` without the `.dot`)."""
    found = {path.resolve() for folder in folders for path in files(folder, "rulegraph.svg")}
    return sorted(path for path in found if not path.with_suffix(".dot").exists())


def read_graph(path: Path) -> Graph:
    """Nodes and edges of a dot file that Snakemake wrote.

    Raises:
        DataError: no node in it.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    rules = dict(re.findall(r'^\s*(\w+)\s*\[\s*label\s*=\s*"([^"\\]*)', text, re.MULTILINE))
    edges = re.findall(r"^\s*(\w+)\s*->\s*(\w+)", text, re.MULTILINE)
    if not rules or {node for edge in edges for node in edge} - rules.keys():
        raise DataError(f"{path}: not a rule graph", expected="what `snakemake --rulegraph` prints")
    return Graph(path.parent.name, rules, sorted(set(edges)))


def _stage(path: Path) -> Stage:
    by_step: dict[int, dict[str, Any]] = {}
    for line, record in iter_jsonl(path):
        if not isinstance(record, dict) or number(record.get("step")) is None:
            raise DataError(f"{path}:{line}: not a line of metrics", expected="an object with a step")
        by_step[record["step"]] = record
    parts = path.parent.parts
    run = parts[-3] if len(parts) > 2 and parts[-2] == "train" else parts[-2] if len(parts) > 1 else ""
    summary, log = path.parent / "summary.json", path.parent / "ledger.jsonl"
    ledger = (
        read_json(summary, fix="train again; the stage is written anew").get("ledger", {}) if summary.exists() else {}
    )
    entries = [entry for _, entry in iter_jsonl(log)] if log.exists() else []
    reasons = Counter((str(e.get("what")), _general(e)) for e in entries)
    return Stage(
        run, path.parent.name, [by_step[step] for step in sorted(by_step)], ledger, dict(reasons.most_common())
    )


def _general(entry: dict[str, Any]) -> str:
    """The first line of a reason without the sample's name and paths, so that equal faults count as one."""
    lines = str(entry.get("reason", "")).splitlines() or [""]
    return re.sub(r"(/[^\s:]+)+(:\d+)?", "FILE", lines[0].replace(str(entry.get("id", "")) or "\0", "")).strip(": ")


def _jobs(path: Path) -> list[Job]:
    at = len(path.parts) - 1 - path.parts[::-1].index("benchmarks")
    run, below = path.parts[at - 1], path.parts[at + 1 :]
    rule, name = (below[0], "/".join(below[1:]).removesuffix(".tsv")) if len(below) > 1 else (path.stem, path.stem)
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    if any(row.get("s") is None for row in rows):
        raise DataError(f"{path}: no column s", expected="a benchmark file of Snakemake", fix="remove it")
    return [Job(run, rule, name, *(_measure(row.get(key)) for key in MEASURES)) for row in rows]


def _measure(text: str | None) -> float | None:
    """Snakemake writes NA or - for what it could not measure (very short jobs)."""
    try:
        return number(float(text or ""))
    except ValueError:
        return None
