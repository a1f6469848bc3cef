"""Grades that a judge gave, and their means. Source: MM-Vet (scale and capabilities)"""

import re
from collections.abc import Sequence

from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import Answers, Metric, Row
from vlm.eval.measures.text import Compat

GRADE = re.compile(r"(?:0(?:\.\d+)?|1(?:\.0+)?)(?![\d.]*\d)")


def judge_grade(reply: str, *, compat: Compat = "upstream") -> float:
    """The grade 0.0 to 1.0 with which the reply of a judge begins. The same in both modes.

    Raises:
        ValueError: it begins with something else.
    """
    match = GRADE.match(reply.strip().lstrip("| "))
    if match is None:
        raise ValueError(f"the judge said {reply.strip()[:60]!r}, not a number from 0.0 to 1.0")
    return float(match[0])


def mmvet(benchmark: Benchmark, rows: Sequence[Row], compat: Compat) -> list[Metric]:
    """The mean grade, and that of the questions that need each capability (a question may need several)."""
    capabilities = sorted({name for row in rows for name in row["meta"]["capability"]})
    parts = {name: [row for row in rows if name in row["meta"]["capability"]] for name in capabilities}
    return [Answers(rows, compat).mean("grade"), *[Answers(p, compat).mean(f"grade/{n}") for n, p in parts.items()]]
