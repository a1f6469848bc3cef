"""Grades that a judge gave, and their means. Source: MM-Vet (scale and capabilities)."""

import re
from collections.abc import Sequence

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import Answers, Metric, ResultRow
from vlm.eval.measures.text import Compat
from vlm.eval.scorers.scorer import Scorer, takes

GRADE = re.compile(r"(?:0(?:\.\d+)?|1(?:\.0+)?)(?![\d.]*\d)")


def judge_grade(reply: str, *, compat: Compat = "upstream") -> float:
    """Return the grade, 0.0 to 1.0, with which the reply of a judge begins. The same in both modes.

    Raises:
        ValueError: It begins with something else.
    """
    match = GRADE.match(reply.strip().lstrip("| "))
    if match is None:
        raise ValueError(f"the judge said {reply.strip()[:60]!r}, not a number from 0.0 to 1.0")
    return float(match[0])


def mmvet(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat) -> list[Metric]:
    """Return the mean grade of all questions, and of those that need each capability (a question may need several)."""
    capabilities = sorted({name for row in rows for name in row["meta"]["capability"]})
    parts = {name: [row for row in rows if name in row["meta"]["capability"]] for name in capabilities}
    return [Answers(rows, compat).mean("grade"), *[Answers(p, compat).mean(f"grade/{n}") for n, p in parts.items()]]


SCORERS = {"judge_grade": Scorer(judge_grade, takes("reply"), judged="reply", needs_judge=True)}
AGGREGATES = {"mmvet": mmvet}
