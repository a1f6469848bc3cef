"""Evaluation: benchmarks as tables, their loaders and scorers, the models they ask, and reports.

>>> from vlm.eval import SCORERS, load_benchmark
>>> table = load_benchmark("chartqa")
>>> table.scorer, table.max_new_tokens
('relaxed_accuracy', 100)
>>> SCORERS[table.scorer]("20.5", "20")
1.0

The names below are loaded when they are first used, so that importing the package costs nothing and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.eval.backends.base import Backend
    from vlm.eval.backends.endpoint import Endpoint
    from vlm.eval.backends.judge import Judge
    from vlm.eval.backends.native import Checkpoint, NativeBackend
    from vlm.eval.backends.openai import OpenAIBackend
    from vlm.eval.backends.teacher_forcing import TeacherForcedBackend
    from vlm.eval.benchmark import Benchmark, load_benchmark
    from vlm.eval.loaders import Item, load_items
    from vlm.eval.measures.rows import Metric, ResultRow
    from vlm.eval.mini import make_mini
    from vlm.eval.report.build import build_report
    from vlm.eval.report.data import Report
    from vlm.eval.report.write import write_report
    from vlm.eval.run.runner import Options, run_evaluation
    from vlm.eval.run.score import Score, aggregate, score_item
    from vlm.eval.run.summary import Summary
    from vlm.eval.saved.diff import compare_evaluations, find_pairs
    from vlm.eval.saved.evaluations import Evaluation, find_evaluations
    from vlm.eval.saved.score import score_predictions
    from vlm.eval.scorers import AGGREGATES, SCORERS, Scorer

_WHERE = {
    "vlm.eval.backends.base": ("Backend",),
    "vlm.eval.backends.endpoint": ("Endpoint",),
    "vlm.eval.backends.judge": ("Judge",),
    "vlm.eval.backends.native": ("Checkpoint", "NativeBackend"),
    "vlm.eval.backends.openai": ("OpenAIBackend",),
    "vlm.eval.backends.teacher_forcing": ("TeacherForcedBackend",),
    "vlm.eval.benchmark": ("Benchmark", "load_benchmark"),
    "vlm.eval.loaders": ("Item", "load_items"),
    "vlm.eval.measures.rows": ("Metric", "ResultRow"),
    "vlm.eval.mini": ("make_mini",),
    "vlm.eval.report.build": ("build_report",),
    "vlm.eval.report.data": ("Report",),
    "vlm.eval.report.write": ("write_report",),
    "vlm.eval.run.runner": ("Options", "run_evaluation"),
    "vlm.eval.run.score": ("Score", "aggregate", "score_item"),
    "vlm.eval.run.summary": ("Summary",),
    "vlm.eval.saved.diff": ("compare_evaluations", "find_pairs"),
    "vlm.eval.saved.evaluations": ("Evaluation", "find_evaluations"),
    "vlm.eval.saved.score": ("score_predictions",),
    "vlm.eval.scorers": ("AGGREGATES", "SCORERS", "Scorer"),
}

__all__ = [
    "AGGREGATES",
    "SCORERS",
    "Backend",
    "Benchmark",
    "Checkpoint",
    "Endpoint",
    "Evaluation",
    "Item",
    "Judge",
    "Metric",
    "NativeBackend",
    "OpenAIBackend",
    "Options",
    "Report",
    "ResultRow",
    "Score",
    "Scorer",
    "Summary",
    "TeacherForcedBackend",
    "aggregate",
    "build_report",
    "compare_evaluations",
    "find_evaluations",
    "find_pairs",
    "load_benchmark",
    "load_items",
    "make_mini",
    "run_evaluation",
    "score_item",
    "score_predictions",
    "write_report",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
