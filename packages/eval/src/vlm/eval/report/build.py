"""The report as data: every writer (HTML, Markdown, CSV, JSON, figures) reads this and nothing else."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.eval.report.gather.collect import find_evaluations, find_unfinished
from vlm.eval.report.gather.published import tables_beside
from vlm.eval.report.gather.runs import find_drawings, find_graphs, find_jobs, find_stages
from vlm.eval.report.gather.samples import pick
from vlm.eval.report.tables import evaluations as tables
from vlm.eval.report.tables import training, workflow
from vlm.eval.report.tables.long_context import by_length, by_position, by_stride, haystacks, lengths_together
from vlm.eval.report.tables.reasons import reasons

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """All tables, JSON-ready. Whatever depends on the clock is in `timing` alone, so that two runs of the same inputs
    differ there or nowhere. `browser` (samples and their thumbnails) and `graphs` (SVG) are for the page alone."""

    models: list[str]
    benchmarks: list[str]
    ran: dict[str, Any]
    warnings: list[str]
    training: Rows
    accuracy: Rows
    published: Rows
    other_published: Rows
    reasons: Rows
    differences: Rows
    blind: Rows
    haystacks: Rows
    by_length: Rows
    by_position: Rows
    by_stride: Rows
    provenance: Rows
    samples: dict[str, Any]
    timing: dict[str, Any]
    browser: dict[str, Any]
    graphs: Rows

    def as_json(self) -> dict[str, Any]:
        """The tables without thumbnails and drawings."""
        return {key: value for key, value in asdict(self).items() if key not in ("browser", "graphs")}


def build(folders: Sequence[Path], *, samples_per_benchmark: int = 60, seed: int = 0) -> Report:
    """Read everything below `folders`.

    Raises:
        DataError: nothing to report, or a damaged file; names it.
    """
    evaluations, stages, unfinished = find_evaluations(folders), find_stages(folders), find_unfinished(folders)
    if not evaluations and not stages:
        begun = f"; begun and not finished: {', '.join(map(str, unfinished))}" if unfinished else ""
        raise DataError(
            f"no metrics.jsonl and no results.jsonl below {', '.join(map(str, folders))}{begun}",
            fix="run `vlm train` or `vlm eval` first, or name their run folder",
        )
    browser = pick(evaluations, samples_per_benchmark, seed)
    long = lengths_together(evaluations)
    drawn: Rows = [{"run": g.run, "svg": workflow.drawing(g), "image": None} for g in find_graphs(folders)]
    drawn += [{"run": p.parent.name, "svg": None, "image": workflow.data_url(p)} for p in find_drawings(folders)]
    return Report(
        models=sorted({e.summary["model"] for e in evaluations}),
        benchmarks=sorted({e.summary["title"] for e in evaluations}),
        ran=tables.ran(evaluations),
        warnings=tables.warnings(evaluations, unfinished),
        training=[training.training(stage) for stage in stages],
        accuracy=[tables.accuracy(e) for e in evaluations],
        published=tables_beside(evaluations) if evaluations else [],
        other_published=tables.other_published(evaluations),
        reasons=reasons(evaluations),
        differences=[d for e in evaluations if (d := tables.differences(e))],
        blind=tables.blind(evaluations),
        haystacks=[h for e in long for h in haystacks(e)],
        by_length=by_length(long),
        by_position=by_position(long),
        by_stride=by_stride(evaluations),
        provenance=[tables.provenance(e) for e in evaluations],
        samples={"shown": browser["shown"], "seed": seed},
        timing={
            "evaluations": [tables.timing(e) for e in evaluations],
            "training": [training.speed(stage) for stage in stages],
            "rules": workflow.rules(find_jobs(folders)),
        },
        browser=browser,
        graphs=drawn,
    )
