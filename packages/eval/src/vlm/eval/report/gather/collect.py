"""Find evaluation results below run folders, and refuse what is damaged before anything is written."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError

REQUIRED: dict[str, type] = {
    "benchmark": str,
    "title": str,
    "model": str,
    "variant": dict,
    "metrics": list,
    "outcomes": dict,
    "data": dict,
}
"""What a summary.json must hold for a report, and of which type."""

AGAIN = "run the same `vlm eval` again; it completes the folder"


@dataclass(frozen=True)
class Row:
    """The small part of a results row that tables need; `offset` is where the whole line starts in the file.

    `tokens` and `max_position`: length of the prompt and its last position, where the runner recorded them.
    Rows of one `cluster` are not independent (questions on one page).
    """

    id: str
    group: str
    outcome: str
    score: float | None
    strict: float | None
    context_length: float | None
    depth: float | None
    tokens: float | None
    max_position: float | None
    cluster: str
    offset: int


@dataclass(frozen=True)
class Evaluation:
    """One `results.jsonl` with its `summary.json`, and `run.json` and `timing.json` where present.

    `not_numbers`: scores and metrics that were NaN or infinite; they count as unscored.
    """

    folder: Path
    summary: dict[str, Any]
    rows: list[Row]
    run: dict[str, Any]
    timing: dict[str, Any]
    not_numbers: int = 0

    @property
    def variant(self) -> dict[str, Any]:
        return self.summary["variant"]

    @property
    def label(self) -> str:
        """The variant in words: `plain positions`, `stride 64`, `stride 64, images exchanged`, …"""
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
        metrics = self.summary["metrics"] or [None]
        return metrics[0]

    def read(self, offset: int) -> dict[str, Any]:
        """The whole row that starts at `offset`, with None for what is not a number."""
        with (self.folder / "results.jsonl").open("rb") as f:
            f.seek(offset)
            return json.loads(f.readline(), parse_constant=lambda _: None)


def interval_of(metric: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a metric without its name."""
    return {key: metric[key] for key in ("value", "low", "high", "scored", "total")}


def incomparable(e: Evaluation) -> list[str]:
    """Reasons why the number must not be set against a published one; empty when none is known."""
    data = e.summary["data"]
    reasons = ["miniature data"] if data.get("mini") else []
    available = data.get("available", len(e.rows))
    if len(e.rows) < available:
        reasons.append(f"first {len(e.rows):,} of {available:,} items")
    if e.variant.get("shuffle_images"):
        reasons.append("images exchanged on purpose")
    unscored = sum(n for kind, n in e.summary["outcomes"].items() if kind in ("oom", "error", "refused"))
    reasons += [f"{unscored:,} items unscored"] if unscored else []
    return reasons + ([f"{e.not_numbers:,} scores that are not numbers"] if e.not_numbers else [])


def asked(e: Evaluation) -> dict[str, Any]:
    """The settings that published measurements name, as this evaluation recorded them."""
    decode = e.summary.get("provenance", {}).get("decode") or {}
    rule = decode.get("image_rule") or {}
    plain = {key: decode.get(key) for key in ("template", "dtype", "stride", "beams")}
    return {**plain, "image rule": rule.get("kind"), "image size": rule.get("size"), "max tiles": rule.get("max_tiles")}


def find_evaluations(folders: Iterable[Path]) -> list[Evaluation]:
    """All finished evaluations below `folders`, each once, sorted by benchmark, model and variant.

    Raises:
        DataError: results without a summary, or a file that is not what it should be; names file and key or line.
    """
    found = {path.parent.resolve() for folder in folders for path in files(folder, "results.jsonl")}
    evaluations = [_evaluation(folder) for folder in sorted(found)]
    return sorted(evaluations, key=_order)


def find_unfinished(folders: Iterable[Path]) -> list[Path]:
    """Folders of evaluations that were begun (outcomes or a run.json below `eval/`) and have no results yet."""
    begun = {path.parent.resolve() for folder in folders for path in files(folder, "outcomes.jsonl")}
    tops = {folder.parents[1] if folder.parent.name == "shards" else folder for folder in begun}
    return sorted(folder for folder in tops if not (folder / "results.jsonl").exists())


def files(folder: Path, name: str) -> Iterator[Path]:
    """The files of that name below a run folder, in the order of their paths."""
    if not Path(folder).is_dir():
        raise DataError(f"no such run folder: {folder}", fix="name a folder below runs/")
    return iter(sorted(Path(folder).rglob(name)))


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (NaN, infinity, text, nothing)."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def read_json(path: Path, fix: str = AGAIN) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: missing, not JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", fix=fix) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", fix=fix) from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}", expected="a JSON object", fix=fix)
    return value


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


def _evaluation(folder: Path) -> Evaluation:
    rows, offset, bad = [], 0, 0
    with (folder / "results.jsonl").open("rb") as f:
        for line_number, line in enumerate(f, 1):
            try:
                row = json.loads(line)
                rows.append(_row(row, offset))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{folder / 'results.jsonl'}:{line_number}"
                raise DataError(f"{where}: not a results row: {error!r}", fix=AGAIN) from error
            bad += row["score"] is not None and number(row["score"]) is None
            offset += len(line)
    summary, bad_metrics = _summary(folder / "summary.json")
    extra = {n: read_json(folder / n) if (folder / n).exists() else {} for n in ("run.json", "timing.json")}
    return Evaluation(folder, summary, rows, extra["run.json"], extra["timing.json"], bad + bad_metrics)


def _summary(path: Path) -> tuple[dict[str, Any], int]:
    """The summary with None for values that are no numbers, and how many of those there were."""
    summary, bad = read_json(path), 0
    faults = [key for key, kind in REQUIRED.items() if not isinstance(summary.get(key), kind)]
    if faults:
        wanted = ", ".join(f"{key}: {REQUIRED[key].__name__}" for key in faults)
        raise DataError(f"{path}: {', '.join(faults)} missing or of another type", expected=wanted, fix=AGAIN)
    for metric in summary["metrics"] + summary.setdefault("strict_metrics", []):
        if not isinstance(metric, dict) or not {"name", "value", "scored", "total"} <= metric.keys():
            raise DataError(f"{path}: a metric {metric!r:.80}", expected="name, value, scored and total", fix=AGAIN)
        for key in ("value", "low", "high"):
            damaged = metric.get(key) is not None and number(metric[key]) is None
            bad += damaged and key == "value"
            metric[key] = number(metric.get(key))
            metric["note"] = "not a number" if damaged else metric.get("note", "")
    return summary, bad


def _row(row: dict[str, Any], offset: int) -> Row:
    meta = row.get("meta") or {}
    depth = meta.get("placed_depth")
    if isinstance(depth, list):
        depth = sum(depth) / len(depth) if depth else None
    return Row(
        id=str(row["id"]),
        group=row.get("group") or "",
        outcome=row["outcome"],
        score=number(row["score"]),
        strict=number(row.get("strict_score")),
        context_length=number(meta.get("context_length")),
        depth=number(depth),
        tokens=number(row.get("tokens", meta.get("tokens"))),
        max_position=number(row.get("max_position", meta.get("max_position"))),
        cluster=str(meta.get("cluster", f"id {row['id']}")),
        offset=offset,
    )
