"""Build a report from run folders.

report = build_report([Path("runs/demo")])
report.accuracy[0]["metrics"][0]["value"]
"""

from collections.abc import Sequence
from pathlib import Path

from vlm.core.errors import DataError
from vlm.eval.report.data import Report
from vlm.eval.report.gather.samples import choose_samples
from vlm.eval.report.gather.training import find_stages
from vlm.eval.report.gather.workflow import find_drawings, find_graphs, find_jobs
from vlm.eval.report.tables import evaluations as tables
from vlm.eval.report.tables.long_context import by_length, by_position, by_stride, haystacks, lengths_together
from vlm.eval.report.tables.published import tables_beside
from vlm.eval.report.tables.reasons import reason_rows
from vlm.eval.report.tables.training import stage_row, stage_speed
from vlm.eval.report.tables.workflow import rule_rows
from vlm.eval.saved.evaluations import find_evaluations, find_unfinished


def build_report(folders: Sequence[Path], *, samples_per_benchmark: int = 60, seed: int = 0) -> Report:
    """Read everything below `folders` into one report.

    Args:
        folders: Run folders: training runs, evaluations, or both.
        samples_per_benchmark: Most samples of a benchmark that the page shows.
        seed: Seed of the choice of samples.

    Raises:
        DataError: Nothing to report, or a damaged file; names it.

    >>> build_report([Path("runs/demo")]).accuracy[0]["metrics"][0]["value"]  # doctest: +SKIP
    81.3
    """
    evaluations, stages, unfinished = find_evaluations(folders), find_stages(folders), find_unfinished(folders)
    if not evaluations and not stages:
        begun = f"; begun and not finished: {', '.join(map(str, unfinished))}" if unfinished else ""
        raise DataError(
            f"no metrics.jsonl and no results.jsonl below {', '.join(map(str, folders))}{begun}",
            fix="run `vlm train` or `vlm eval` first, or name their run folder",
        )
    browser = choose_samples(evaluations, samples_per_benchmark, seed)
    long = lengths_together(evaluations)
    return Report(
        models=sorted({e.summary["model"] for e in evaluations}),
        benchmarks=sorted({e.summary["title"] for e in evaluations}),
        ran=tables.report_head(evaluations),
        warnings=tables.report_warnings(evaluations, unfinished),
        training=[stage_row(stage) for stage in stages],
        accuracy=[tables.accuracy_row(e) for e in evaluations],
        published=tables_beside(evaluations) if evaluations else [],
        other_published=tables.other_published(evaluations),
        reasons=reason_rows(evaluations),
        differences=[d for e in evaluations if (d := tables.scorer_difference(e))],
        blind=tables.blind_rows(evaluations),
        haystacks=[h for e in long for h in haystacks(e)],
        by_length=by_length(long),
        by_position=by_position(long),
        by_stride=by_stride(evaluations),
        provenance=[tables.provenance_row(e) for e in evaluations],
        samples={"shown": browser["shown"], "seed": seed},
        timing={
            "evaluations": [tables.evaluation_time(e) for e in evaluations],
            "training": [stage_speed(stage) for stage in stages],
            "rules": rule_rows(find_jobs(folders)),
        },
        browser=browser,
        graphs=find_graphs(folders),
        drawings=find_drawings(folders),
    )
