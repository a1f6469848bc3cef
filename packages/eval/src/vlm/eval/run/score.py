"""One reply -> one score, and the scores of a benchmark -> its metrics.

score = score_item(table, item, completion)                    # the published rule
strict = score_item(table, item, completion, "fixed")          # its faults corrected
metrics = aggregate(table, rows)                               # rows as in results.jsonl
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm.core.errors import UnknownName
from vlm.eval.backends.judge import ENDED, Verdict
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import Item
from vlm.eval.measures.rows import Metric, ResultRow, Rows
from vlm.eval.measures.text import Compat
from vlm.eval.scorers import AGGREGATES, SCORERS
from vlm.eval.scorers.harnesses import harness_metrics

__all__ = ["Metric", "Score", "aggregate", "score_item"]


@dataclass(frozen=True)
class Score:
    """What was read from a reply, its value from 0 to 1 (None: not scored), and why, in words."""

    extracted: str
    value: float | None
    why: str


def score_item(
    benchmark: Benchmark,
    item: Item,
    completion: str | None,
    compat: Compat = "upstream",
    verdict: Verdict | None = None,
) -> Score:
    """Score one reply by the scorer that the table names.

    A published scorer that stops with an error on this reply counts it as wrong here, and `why` says so. An empty reply
    that a published rule takes for right stays right in upstream mode, where `why` says so, and is wrong in fixed mode.

    Args:
        benchmark: The table.
        item: The question.
        completion: The reply; None when the model did not answer, which is never scored.
        compat: The published rule, or its correction.
        verdict: What a judge made of the reply, for tables with a `judge`. A reply that only a judge can grade, or that
            the judge failed on, has no score.

    Raises:
        UnknownName: The table names no scorer that can score replies.
    """
    if completion is None:
        return Score("", None, "no answer")
    if item.gold is None:
        return Score(completion.strip(), None, "not scored: the answers are with a server")
    name = benchmark.scorer_of(item.group)
    scorer = SCORERS.get(name)
    if scorer is None or scorer.inputs is None:
        raise UnknownName("scorer", name, [known for known, other in SCORERS.items() if other.inputs])
    judged = verdict.text if verdict and verdict.kind == "judged" else None
    if (verdict and verdict.kind in ENDED) or (scorer.needs_judge and judged is None):
        return Score("", None, verdict.why if verdict else "not judged")
    if compat == "fixed" and not completion.strip():
        return Score("", 0.0, "empty reply")
    try:
        extracted, value = scorer.read(item, completion, compat, judged)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        if compat == "fixed":
            raise
        return Score("", 0.0, f"wrong: the published scorer stops with {type(error).__name__}: {error}")
    word = "right" if value == 1 else "wrong" if value == 0 else f"{value:.3f}"
    by = f"{name} ({verdict.why})" if verdict else name
    empty = ", although the reply is empty" if value and not completion.strip() else ""
    return Score(extracted, value, f"{word} by {by}: read {extracted!r:.80}, expected {item.gold!r:.80}{empty}")


def aggregate(benchmark: Benchmark, rows: Sequence[ResultRow], compat: Compat = "upstream") -> list[Metric]:
    """Compute the metrics of a benchmark, the headline first, from rows of results.jsonl.

    `score` is averaged in upstream mode, `strict_score` in fixed mode. Rows without an answer (unanswered, oom, error,
    refused) are in `n_total` and in no mean. A metric that cannot be computed has the value None and a note. In
    upstream mode the numbers by the rules of lmms-eval and VLMEvalKit follow (`vlm.eval.scorers.harnesses`).

    Raises:
        UnknownName: The table names no known aggregate.
    """
    if benchmark.aggregate not in AGGREGATES:
        raise UnknownName("aggregate", benchmark.aggregate, AGGREGATES)
    rows = Rows.of(rows)
    found = AGGREGATES[benchmark.aggregate](benchmark, rows, compat)
    return found if compat == "fixed" else [*found, *harness_metrics(benchmark, rows)]
