"""Find finished evaluations below run folders, and refuse damaged ones.

for evaluation in find_evaluations([Path("runs/demo")]):
    evaluation.label, evaluation.summary["metrics"][0], len(evaluation.rows)
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from vlm.core.errors import DataError
from vlm.core.home import read_json
from vlm.eval.measures.rows import ResultRow
from vlm.eval.run.summary import MetricRow, Provenance, Summary, Timing, Variant

REQUIRED: dict[str, type] = {
    "benchmark": str,
    "title": str,
    "model": str,
    "variant": dict,
    "metrics": list,
    "outcomes": dict,
    "data": dict,
}
"""Keys that a summary.json must have, and their types."""

RERUN = "rerun the same `vlm eval`; it completes the folder"


@dataclass(frozen=True)
class SampleRow:
    """The small part of a results row that tables need; `offset` is where its line starts in the file, in bytes.

    `tokens` and `max_position`: length of the prompt and its last position, where they were recorded. Rows of one
    `cluster` are not independent (questions on one page). `added_option`: an option that the published loader drops.
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
    added_option: bool = False


class Who(TypedDict):
    """The columns with which every table of evaluations begins."""

    benchmark: str
    title: str
    model: str
    variant: str


class MetricNumbers(TypedDict):
    """The numbers of a metric without its name."""

    value: float | None
    low: float | None
    high: float | None
    scored: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """One `results.jsonl` with its `summary.json`, and `run.json` and `timing.json` where present.

    `not_numbers`: scores and metrics that were NaN or infinite; they count as unscored.

    >>> evaluation = find_evaluations([Path("runs/demo")])[0]  # doctest: +SKIP
    >>> evaluation.label, evaluation.read(evaluation.rows[0].offset)["completion"]  # doctest: +SKIP
    ('stride 64', 'yes')
    """

    folder: Path
    summary: Summary
    rows: list[SampleRow]
    run: Provenance
    timing: Timing
    not_numbers: int = 0

    @property
    def variant(self) -> Variant:
        """The settings that distinguish this evaluation from others of its model."""
        return self.summary["variant"]

    @property
    def label(self) -> str:
        """The variant in words: `plain positions`, `stride 64`, `stride 64, images exchanged`."""
        return label_of(self.variant)

    @property
    def who(self) -> Who:
        """Benchmark, title, model and variant, as tables show them."""
        s = self.summary
        return {"benchmark": s["benchmark"], "title": s["title"], "model": s["model"], "variant": self.label}

    @property
    def metric(self) -> MetricRow | None:
        """The headline metric: the first one of the benchmark."""
        return next(iter(self.summary["metrics"]), None)

    def read(self, offset: int) -> ResultRow:
        """Read the whole row that starts at `offset`, with None for values that are not numbers."""
        with self.reading() as read:
            return read(offset)

    @contextmanager
    def reading(self) -> Iterator[Callable[[int], ResultRow]]:
        """Yield `read` for many rows: the file is opened once."""
        with (self.folder / "results.jsonl").open("rb") as f:

            def read(offset: int) -> ResultRow:
                f.seek(offset)
                return cast(ResultRow, json.loads(f.readline(), parse_constant=lambda _: None))

            yield read


def label_of(v: Variant) -> str:
    """Return a variant in words: `plain positions`, `stride 64`, `stride 64, images exchanged`."""
    stride = v.get("stride")
    parts = [f"stride {stride:g}" if stride is not None else "plain positions"]
    parts += [f"{v['positions']} positions"] if v.get("positions", "exact") != "exact" else []
    parts += [f"{v['tiles']} tiles"] if v.get("tiles") else []
    parts += [f"image rule {v['image_rule']}"] if v.get("image_rule") else []
    parts += [f"up to {v['max_new_tokens']} new tokens"] if v.get("max_new_tokens") else []
    parts += ["images exchanged"] if v.get("shuffle_images") else []
    parts += [f"file {v['edition']}"] if v.get("edition") else []
    return ", ".join(parts)


def asked_of(row: Mapping[str, Any]) -> list[int | str]:
    """Return what a row's question is about, where it says so: numbers of its images, texts of its prompt."""
    asked, images = row.get("asked"), row.get("images")
    n = len(images) if isinstance(images, list) else 0
    given = asked if isinstance(asked, list) else []
    whole = [a for a in given if isinstance(a, str) or (isinstance(a, int) and not isinstance(a, bool) and 0 <= a < n)]
    return list(dict.fromkeys(whole))


def numbers_of(metric: MetricRow) -> MetricNumbers:
    """Return the numbers of a metric without its name."""
    return {
        "value": metric["value"],
        "low": metric["low"],
        "high": metric["high"],
        "scored": metric["scored"],
        "total": metric["total"],
    }


def find_evaluations(folders: Iterable[Path]) -> list[Evaluation]:
    """Return all finished evaluations below `folders`, each once, sorted by benchmark, model and variant.

    Raises:
        DataError: Results without a summary, or a damaged file; names file and key or line.

    >>> [e.summary["benchmark"] for e in find_evaluations([Path("runs/demo")])]  # doctest: +SKIP
    ['DocVQA', 'POPE']
    """
    found = {path.parent.resolve() for folder in folders for path in find_files(folder, "results.jsonl")}
    return sorted((_read_evaluation(folder) for folder in sorted(found)), key=_order)


def find_unfinished(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of evaluations that have outcomes and no results yet."""
    begun = {path.parent.resolve() for folder in folders for path in find_files(folder, "outcomes.jsonl")}
    tops = {folder.parents[1] if folder.parent.name == "shards" else folder for folder in begun}
    return sorted(folder for folder in tops if not (folder / "results.jsonl").exists())


def find_files(folder: Path, name: str) -> Iterator[Path]:
    """Return the files of that name below a run folder, in the order of their paths.

    Raises:
        DataError: No such folder.
    """
    if not Path(folder).is_dir():
        raise DataError(f"no such run folder: {folder}", fix="name a folder below runs/")
    return iter(sorted(Path(folder).rglob(name)))


def finite(value: Any) -> float | None:
    """Return a finite number, or None for anything else (NaN, infinity, text, nothing)."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def read_object(path: Path, fix: str = RERUN) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        DataError: The file is missing, is not JSON, or holds no object.
    """
    value = read_json(path, fix=fix)
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}", expected="a JSON object", fix=fix)
    return value


def _order(e: Evaluation) -> tuple[str, str, bool, bool, float, str]:
    stride = e.variant.get("stride")
    return (
        str(e.summary["title"]).lower(),
        str(e.summary["model"]),
        bool(e.variant.get("shuffle_images")),
        stride is not None,
        stride or 0,
        str(e.folder),
    )


def _read_evaluation(folder: Path) -> Evaluation:
    rows, offset, bad = [], 0, 0
    with (folder / "results.jsonl").open("rb") as f:
        for line_number, line in enumerate(f, 1):
            try:
                row = json.loads(line)
                rows.append(sample_row(row, offset))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{folder / 'results.jsonl'}:{line_number}"
                raise DataError(f"{where}: not a results row: {error!r}", fix=RERUN) from error
            bad += row["score"] is not None and finite(row["score"]) is None
            offset += len(line)
    summary, bad_metrics = read_summary(folder / "summary.json")
    run, timing = (read_object(path) if (path := folder / n).exists() else {} for n in ("run.json", "timing.json"))
    return Evaluation(folder, summary, rows, cast(Provenance, run), cast(Timing, timing), bad + bad_metrics)


def read_summary(path: Path) -> tuple[Summary, int]:
    """Return the summary with None for values that are not numbers, and how many of those there were.

    Raises:
        DataError: It is missing, damaged, or a key is missing.
    """
    content, bad = read_object(path), 0
    faults = [key for key, kind in REQUIRED.items() if not isinstance(content.get(key), kind)]
    if faults:
        expected = ", ".join(f"{key}: {REQUIRED[key].__name__}" for key in faults)
        raise DataError(f"{path}: {', '.join(faults)} missing or of another type", expected=expected, fix=RERUN)
    for metric in content["metrics"] + content.setdefault("strict_metrics", []):
        if not isinstance(metric, dict) or not {"name", "value", "scored", "total"} <= metric.keys():
            raise DataError(f"{path}: a metric {metric!r:.80}", expected="name, value, scored and total", fix=RERUN)
        for key in ("value", "low", "high"):
            damaged = metric.get(key) is not None and finite(metric[key]) is None
            bad += damaged and key == "value"
            metric[key] = finite(metric.get(key))
            metric["note"] = "not a number" if damaged else metric.get("note", "")
    return cast(Summary, content), bad


def sample_row(row: dict[str, Any], offset: int) -> SampleRow:
    """Return the small part of a row that starts at `offset`. Raises what reading something else raises."""
    meta = row.get("meta") or {}
    depth = meta.get("placed_depth")
    if isinstance(depth, list):
        depth = sum(depth) / len(depth) if depth else None
    return SampleRow(
        id=str(row["id"]),
        group=row.get("group") or "",
        outcome=row["outcome"],
        score=finite(row["score"]),
        strict=finite(row.get("strict_score")),
        context_length=finite(meta.get("context_length")),
        depth=finite(depth),
        tokens=finite(row.get("tokens", meta.get("tokens"))),
        max_position=finite(row.get("max_position", meta.get("max_position"))),
        cluster=str(meta.get("cluster", f"id {row['id']}")),
        offset=offset,
        added_option=bool(meta.get("published_without")),
    )
