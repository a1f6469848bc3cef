"""Find what Snakemake recorded below run folders: times and memory of jobs, and the rule graph."""

import base64
import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlm.core.errors import DataError
from vlm.eval.saved.evaluations import find_files, finite

MEASURES = ("s", "max_rss", "cpu_time")
"""Columns of Snakemake's benchmark files that are read: wall seconds, largest resident memory in MB, CPU seconds."""


@dataclass(frozen=True)
class RuleJob:
    """One row of a benchmark file: wall seconds, MB and CPU seconds; None where Snakemake could not measure."""

    run: str
    rule: str
    name: str
    seconds: float | None
    max_rss_mb: float | None
    cpu_seconds: float | None


@dataclass(frozen=True)
class RuleGraph:
    """The rules (node -> name) and the edges between them, as `snakemake --rulegraph` prints them."""

    run: str
    rules: dict[str, str]
    edges: list[tuple[str, str]]


@dataclass(frozen=True)
class RuleDrawing:
    """A rule graph that exists only as an SVG file, as a data URL.

    An image in a page can neither run scripts nor load anything.
    """

    run: str
    url: str


def find_jobs(folders: Iterable[Path]) -> list[RuleJob]:
    """Return the rows of all `benchmarks/**/*.tsv` below `folders`; the first folder, or the file, names the rule.

    Raises:
        DataError: A file without the columns that Snakemake writes.
    """
    found = {
        path.resolve()
        for folder in folders
        for path in find_files(folder, "*.tsv")
        if "benchmarks" in path.relative_to(folder).parts[:-1]
    }
    return [job for path in sorted(found) for job in _read_jobs(path)]


def find_graphs(folders: Iterable[Path]) -> list[RuleGraph]:
    """Return the rule graphs (`rulegraph.dot`) below `folders`."""
    found = {path.resolve() for folder in folders for path in find_files(folder, "rulegraph.dot")}
    return [read_graph(path) for path in sorted(found)]


def find_drawings(folders: Iterable[Path]) -> list[RuleDrawing]:
    """Return the rule graphs below `folders` that exist only as a drawing (`rulegraph.svg` without the `.dot`)."""
    found = {path.resolve() for folder in folders for path in find_files(folder, "rulegraph.svg")}
    paths = sorted(path for path in found if not path.with_suffix(".dot").exists())
    start = "data:image/svg+xml;base64,"
    return [RuleDrawing(path.parent.name, start + base64.b64encode(path.read_bytes()).decode()) for path in paths]


def read_graph(path: Path) -> RuleGraph:
    """Read nodes and edges of a dot file that Snakemake wrote.

    Raises:
        DataError: The file holds no node, or an edge to an unknown one.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    rules = dict(re.findall(r'^\s*(\w+)\s*\[\s*label\s*=\s*"([^"\\]*)', text, re.MULTILINE))
    edges = re.findall(r"^\s*(\w+)\s*->\s*(\w+)", text, re.MULTILINE)
    if not rules or {node for edge in edges for node in edge} - rules.keys():
        raise DataError(f"{path}: not a rule graph", expected="what `snakemake --rulegraph` prints")
    return RuleGraph(path.parent.name, rules, sorted(set(edges)))


def _read_jobs(path: Path) -> list[RuleJob]:
    at = len(path.parts) - 1 - path.parts[::-1].index("benchmarks")
    run, below = path.parts[at - 1], path.parts[at + 1 :]
    rule, name = (below[0], "/".join(below[1:]).removesuffix(".tsv")) if len(below) > 1 else (path.stem, path.stem)
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    if any(row.get("s") is None for row in rows):
        raise DataError(f"{path}: no column s", expected="a benchmark file of Snakemake", fix="remove it")
    return [RuleJob(run, rule, name, *(_measure(row.get(key)) for key in MEASURES)) for row in rows]


def _measure(text: str | None) -> float | None:
    """Read a number; Snakemake writes NA or - where it could not measure (very short jobs)."""
    try:
        return finite(float(text or ""))
    except ValueError:
        return None
