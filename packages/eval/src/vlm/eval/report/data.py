"""The report as data: every writer (HTML, Markdown, CSV, JSON, figures) reads this and nothing else."""

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from vlm.eval.report.gather.samples import SampleBrowser, ShownCount
from vlm.eval.report.gather.workflow import RuleDrawing, RuleGraph
from vlm.eval.report.tables.evaluations import (
    AccuracyRow,
    BlindRow,
    EvaluationTime,
    OtherPublished,
    ProvenanceRow,
    ReportHead,
    ScorerDifference,
)
from vlm.eval.report.tables.long_context import Haystack, LengthCurve, PositionCurve, StrideCurve
from vlm.eval.report.tables.published import TableBeside
from vlm.eval.report.tables.reasons import ReasonRow
from vlm.eval.report.tables.training import StageRow, StageSpeed
from vlm.eval.report.tables.workflow import RuleRow


class ShownSamples(TypedDict):
    """Which samples the page shows, and the seed of their choice."""

    shown: list[ShownCount]
    seed: int


class ReportTimes(TypedDict):
    """Everything that depends on the clock."""

    evaluations: list[EvaluationTime]
    training: list[StageSpeed]
    rules: list[RuleRow]


@dataclass(frozen=True)
class Report:
    """All tables of a report, ready for JSON.

    Everything that depends on the clock is in `timing`: two reports of the same inputs differ there or nowhere. The
    page alone shows `browser` (samples and their thumbnails), `graphs` and `drawings`.

    >>> report = build_report([Path("runs/demo")])  # doctest: +SKIP
    >>> report.models, [row["title"] for row in report.accuracy]  # doctest: +SKIP
    (['V2PE'], ['DocVQA (validation)', 'POPE'])
    """

    models: list[str]
    benchmarks: list[str]
    ran: ReportHead
    warnings: list[str]
    training: list[StageRow]
    accuracy: list[AccuracyRow]
    published: list[TableBeside]
    other_published: list[OtherPublished]
    reasons: list[ReasonRow]
    differences: list[ScorerDifference]
    blind: list[BlindRow]
    haystacks: list[Haystack]
    by_length: list[LengthCurve]
    by_position: list[PositionCurve]
    by_stride: list[StrideCurve]
    provenance: list[ProvenanceRow]
    samples: ShownSamples
    timing: ReportTimes
    browser: SampleBrowser
    graphs: list[RuleGraph]
    drawings: list[RuleDrawing]

    def as_json(self) -> dict[str, Any]:
        """Return the tables without thumbnails, graphs and drawings."""
        return {key: value for key, value in asdict(self).items() if key not in ("browser", "graphs", "drawings")}
