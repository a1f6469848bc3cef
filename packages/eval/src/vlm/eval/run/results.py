"""From answers to files: a row for each item, the summary, the submission. Scores are always computed afresh."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import cast

from vlm.core.errors import DataError
from vlm.core.home import new_file, write_json
from vlm.core.spill import Spilled
from vlm.eval.backends.judge import Judge, Verdict, judge_all, judge_summary
from vlm.eval.benchmark import Benchmark
from vlm.eval.keys import content_key, file_hash
from vlm.eval.measures.rows import Metric, ResultRow, Rows
from vlm.eval.run.outcomes import Outcome
from vlm.eval.run.plan import Task
from vlm.eval.run.score import aggregate, score_item
from vlm.eval.run.submission import write_submission
from vlm.eval.run.summary import AnswerSource, MetricRow, PublishedValue, Summary, SummaryHead

SAID_NOTHING = "the model returned an empty answer"

JUDGED = 1024
"""Answers that are in memory, and with a judge, at a time."""

NOT_READ = ("", "unknown", "other")
"""What a strict rule extracts from a reply that it cannot read."""


@cache
def scorer_hash() -> str:
    """Return the sha256 of the scorers' sources: a changed scorer changes the `key` of every row it scored."""
    here = Path(__file__).parent.parent
    rooms = ("scorers", "measures")
    files = (p for room in rooms for kind in ("py", "json") for p in here.glob(f"{room}/**/*.{kind}"))
    sources = sorted([here / "run" / "score.py", *files])
    return content_key(sources=[[p.relative_to(here).as_posix(), file_hash(str(p))] for p in sources])


def known_scores(benchmark: Benchmark, tasks: Sequence[Task], known: dict[str, Outcome]) -> list[float]:
    """Return the scores, by the published rule, of the tasks that have one; for the progress bar."""
    scores = [score_item(benchmark, t.item, known[t.key].completion, "upstream") for t in tasks]
    return [score.value for score in scores if score.value is not None]


def write_results(
    benchmark: Benchmark,
    source: AnswerSource,
    answers: Iterable[tuple[Task, Outcome]],
    out_dir: Path,
    head: SummaryHead,
    judge: Judge | None = None,
) -> Summary:
    """Score every answer, write results.jsonl, summary.json and the submission, and return the summary.

    Args:
        benchmark: The table, as the model's family is asked.
        source: What answered; its fingerprint and settings are recorded.
        answers: The items, in data order, with their outcomes.
        out_dir: Folder to write to.
        head: Model, variant and data.
        judge: For tables with a judge.

    Raises:
        DataError: Nothing was answered; names the most frequent reason.
    """
    stored, verdicts = Spilled[ResultRow](), Spilled[Verdict | None]()
    limit = getattr(source, "max_positions", None)
    empty = unreadable = beyond = 0
    with new_file(out_dir / "results.jsonl") as temporary, temporary.open("wb") as file:
        for task, outcome, verdict in _judged(benchmark, answers, judge):
            row, readable = _result_row(benchmark, task, outcome, verdict)
            file.write(f"{json.dumps(row, ensure_ascii=False, sort_keys=True)}\n".encode())
            stored.append(row)
            if benchmark.judge:
                verdicts.append(verdict)
            empty += _says_nothing(outcome)
            unreadable += not readable
            beyond += limit is not None and (outcome.max_position or 0) >= limit
    rows = Rows.of(stored)
    counts = Counter(row["outcome"] for row in rows)
    summary: Summary = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "model": head["model"],
        "variant": head["variant"],
        "data": head["data"],
        "metrics": [_metric_row(m) for m in aggregate(benchmark, rows, "upstream")],
        "strict_metrics": [_metric_row(m) for m in aggregate(benchmark, rows, "fixed")],
        "published": [cast(PublishedValue, p.model_dump(mode="json")) for p in benchmark.published],
        "outcomes": {kind: counts[kind] for kind in sorted(counts)},
        "empty_answers": empty,
        "unreadable_answers": unreadable,
        "provenance": {"weights": source.fingerprint, "scorers": scorer_hash(), "decode": source.settings},
    }
    if beyond:
        summary["beyond_positions"] = beyond
    if "imported" in head:
        summary["imported"] = head["imported"]
    if benchmark.judge:
        summary["judge"] = about_judge = judge_summary(benchmark, verdicts, judge)
        for headline in (summary["metrics"][0], summary["strict_metrics"][0]):
            headline["note"] = about_judge["note"] or headline["note"]
    write_json(out_dir / "summary.json", summary)
    if not counts["ok"] and not counts["truncated"]:
        reasons = Counter(row["why"] for row in rows)
        again = "fix the cause, then rerun the same command with --retry-failed"
        more = "give the model more tokens, --max-new-tokens N, or a longer context"
        raise DataError(
            f"none of {len(rows)} items was answered; most often: {reasons.most_common(1)[0][0]}",
            fix=f"see {out_dir / 'results.jsonl'}; {more if counts['unanswered'] > len(rows) / 2 else again}",
        )
    write_submission(benchmark, rows, out_dir)
    return summary


def _judged(
    benchmark: Benchmark, answers: Iterable[tuple[Task, Outcome]], judge: Judge | None
) -> Iterator[tuple[Task, Outcome, Verdict | None]]:
    """Yield the answers with their verdicts, some at a time."""
    left = iter(answers)
    while part := list(islice(left, JUDGED)):
        verdicts = judge_all(benchmark, [(task.item, outcome.completion) for task, outcome in part], judge)
        yield from ((task, outcome, verdict) for (task, outcome), verdict in zip(part, verdicts, strict=True))


def _result_row(benchmark: Benchmark, task: Task, outcome: Outcome, verdict: Verdict | None) -> tuple[ResultRow, bool]:
    """Return the row of an item, and whether the strict rule can read its reply; a missing or empty one counts so."""
    item = task.item
    judgement = {"judge": asdict(verdict)} if verdict else {}
    score = score_item(benchmark, item, outcome.completion, "upstream", verdict)
    strict = score_item(benchmark, item, outcome.completion, "fixed", verdict)
    why = score.why if score.value == strict.value else f"{score.why} · strict: {strict.why}"
    if _says_nothing(outcome):
        why = f"{SAID_NOTHING} · {why}"
    row: ResultRow = {
        "benchmark": benchmark.name,
        "id": item.id,
        "group": item.group,
        "outcome": outcome.outcome,
        "prompt": task.question,
        "images": list(task.media),
        "tokens": outcome.tokens,
        "max_position": outcome.max_position,
        "completion": outcome.completion,
        "extracted": score.extracted,
        "score": score.value,
        "strict_score": strict.value,
        "why": why if outcome.answered else outcome.detail,
        "gold": item.gold,
        "meta": item.meta,
        "key": content_key(answer=outcome.key, scorers=scorer_hash(), **judgement),
    }
    if verdict:
        row["judge"] = asdict(verdict)
    if item.asked:
        row["asked"] = list(item.asked)
    unreadable = (
        strict.value is not None
        and (strict.extracted in NOT_READ or strict.extracted.startswith("no box "))
        and not _says_nothing(outcome)
    )
    return row, not unreadable


def _says_nothing(outcome: Outcome) -> bool:
    return outcome.completion is not None and not outcome.completion.strip()


def _metric_row(metric: Metric) -> MetricRow:
    return {
        "name": metric.name,
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "note": metric.note,
        "scored": metric.n_scored,
        "total": metric.n_total,
    }
