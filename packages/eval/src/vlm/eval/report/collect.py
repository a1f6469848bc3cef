"""Find training metrics and evaluation results below run folders."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.records import iter_jsonl


@dataclass(frozen=True)
class Row:
    """The small part of a results row that tables need; `offset` is where the whole line starts in the file.

    Rows of one `cluster` are not independent (questions on one page).
    """

    id: str
    group: str
    outcome: str
    score: float | None
    strict: float | None
    context_length: float | None
    depth: float | None
    cluster: str
    offset: int


@dataclass(frozen=True)
class Evaluation:
    """One `results.jsonl` with its `summary.json`, and `run.json` and `timing.json` where present."""

    folder: Path
    summary: dict[str, Any]
    rows: list[Row]
    run: dict[str, Any]
    timing: dict[str, Any]

    @property
    def variant(self) -> dict[str, Any]:
        return self.summary.get("variant", {})

    @property
    def label(self) -> str:
        """The variant in words: `one position per token`, `stride 64`, `stride 64, images exchanged`, …"""
        v = self.variant
        parts = [f"stride {v['stride']:g}" if v.get("stride") is not None else "plain positions"]
        parts += ["float32 positions"] if v.get("positions") == "float32" else []
        parts += [f"{v['tiles']} tiles"] if v.get("tiles") else []
        parts += ["images exchanged"] if v.get("shuffle_images") else []
        return ", ".join(parts)

    @property
    def who(self) -> dict[str, Any]:
        """The columns that every table of evaluations begins with."""
        names = {key: self.summary[key] for key in ("benchmark", "title", "model")}
        return {**names, "variant": self.label}

    @property
    def metric(self) -> dict[str, Any] | None:
        """The headline metric: the first one of the benchmark."""
        metrics = self.summary.get("metrics") or [None]
        return metrics[0]

    def read(self, offset: int) -> dict[str, Any]:
        """The whole row that starts at `offset`."""
        with (self.folder / "results.jsonl").open("rb") as f:
            f.seek(offset)
            return json.loads(f.readline())


def interval_of(metric: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a metric without its name."""
    return {key: metric[key] for key in ("value", "low", "high", "scored", "total")}


@dataclass(frozen=True)
class Stage:
    """One `metrics.jsonl`: `name` is its folder, `run` the one above `train/`; one record per step, the last wins."""

    run: str
    name: str
    records: list[dict[str, Any]]


def find_evaluations(folders: Iterable[Path]) -> list[Evaluation]:
    """All finished evaluations below `folders`, each once, sorted by benchmark, model and variant.

    Raises:
        DataError: results without a summary, or a file that is not JSON.
    """
    found = {path.parent.resolve() for folder in folders for path in _files(folder, "results.jsonl")}
    evaluations = [_evaluation(folder) for folder in sorted(found)]
    return sorted(evaluations, key=_order)


def find_stages(folders: Iterable[Path]) -> list[Stage]:
    """All training stages below `folders`, each once, in the order of their paths."""
    found = {path.resolve() for folder in folders for path in _files(folder, "metrics.jsonl")}
    return [_stage(path) for path in sorted(found)]


def _files(folder: Path, name: str) -> Iterator[Path]:
    if not Path(folder).is_dir():
        raise DataError(f"no such run folder: {folder}", fix="name a folder below runs/")
    return Path(folder).rglob(name)


def _order(e: Evaluation) -> tuple:
    v = e.variant
    return (
        str(e.summary["title"]).lower(),
        str(e.summary["model"]),
        bool(v.get("shuffle_images")),
        v.get("stride") is not None,
        v.get("stride") or 0,
        str(e.folder),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", fix="run the same `vlm eval` again; it completes the folder") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def _evaluation(folder: Path) -> Evaluation:
    rows, offset = [], 0
    with (folder / "results.jsonl").open("rb") as f:
        for number, line in enumerate(f, 1):
            try:
                rows.append(_row(json.loads(line), offset))
            except (ValueError, KeyError) as error:
                raise DataError(f"{folder / 'results.jsonl'}:{number}: not a results row: {error!r}") from error
            offset += len(line)
    extra = {n: _json(folder / n) if (folder / n).exists() else {} for n in ("run.json", "timing.json")}
    return Evaluation(folder, _json(folder / "summary.json"), rows, extra["run.json"], extra["timing.json"])


def _row(row: dict[str, Any], offset: int) -> Row:
    meta = row.get("meta") or {}
    depth = meta.get("placed_depth")
    if isinstance(depth, list):
        depth = sum(depth) / len(depth) if depth else None
    return Row(
        id=str(row["id"]),
        group=row.get("group") or "",
        outcome=row["outcome"],
        score=row["score"],
        strict=row.get("strict_score"),
        context_length=meta.get("context_length"),
        depth=depth,
        cluster=str(meta.get("cluster", f"id {row['id']}")),
        offset=offset,
    )


def _stage(path: Path) -> Stage:
    by_step = {record["step"]: record for _, record in iter_jsonl(path) if "step" in record}
    parts = path.parent.parts
    run = parts[-3] if len(parts) > 2 and parts[-2] == "train" else parts[-2] if len(parts) > 1 else ""
    return Stage(run, path.parent.name, [by_step[step] for step in sorted(by_step)])
