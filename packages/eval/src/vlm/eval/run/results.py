"""From answers to files: a row for each item, the summary, the submission. Scores are always computed afresh."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import write_atomic, write_json
from vlm.eval.backends.base import Backend
from vlm.eval.backends.judge import Judge, Verdict, judge_all, judge_summary
from vlm.eval.benchmark import Benchmark
from vlm.eval.keys import content_key, file_hash
from vlm.eval.run.outcomes import Outcome
from vlm.eval.run.plan import Task
from vlm.eval.run.score import Metric, aggregate, score_item
from vlm.eval.run.submission import write_submission

SAID_NOTHING = "the model returned an empty answer"


@cache
def scorer_hash() -> str:
    """Return the sha256 of the scorers' sources: a changed scorer changes the `key` of every row it scored."""
    here = Path(__file__).parent.parent
    rooms = ("scorers", "measures")
    files = (p for room in rooms for kind in ("py", "json") for p in here.glob(f"{room}/**/*.{kind}"))
    sources = sorted([here / "run" / "score.py", *files])
    return content_key(sources=[[p.relative_to(here).as_posix(), file_hash(str(p))] for p in sources])


def values(benchmark: Benchmark, tasks: Sequence[Task], known: dict[str, Outcome]) -> list[float]:
    """Scores of those that have one, by the published rule; for the progress bar."""
    scores = [score_item(benchmark, t.item, known[t.key].completion, "upstream") for t in tasks]
    return [score.value for score in scores if score.value is not None]


def finish(
    benchmark: Benchmark,
    backend: Backend,
    tasks: Sequence[Task],
    known: dict[str, Outcome],
    out_dir: Path,
    about: dict[str, Any],
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Score every answer, write results and summary, return the summary. `about`: `model`, `variant` and `data`.

    Raises:
        DataError: nothing was answered; names the most frequent reason.
    """
    outcomes = [known[task.key] for task in tasks]
    verdicts = judge_all(benchmark, [(t.item, o.completion) for t, o in zip(tasks, outcomes, strict=True)], judge)
    rows = [_row(benchmark, *row) for row in zip(tasks, outcomes, verdicts, strict=True)]
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_atomic(out_dir / "results.jsonl", "".join(lines))
    counts = Counter(row["outcome"] for row in rows)
    summary: dict[str, Any] = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        **about,
        "metrics": [_metric(m) for m in aggregate(benchmark, rows, "upstream")],
        "strict_metrics": [_metric(m) for m in aggregate(benchmark, rows, "fixed")],
        "published": [p.model_dump(mode="json") for p in benchmark.published],
        "outcomes": {kind: counts[kind] for kind in sorted(counts)},
        "empty_answers": sum(_says_nothing(outcome) for outcome in outcomes),
        "provenance": {"weights": backend.fingerprint, "scorers": scorer_hash(), "decode": backend.settings},
    }
    if benchmark.judge:
        summary["judge"] = about_judge = judge_summary(benchmark, verdicts, judge)
        for headline in (summary["metrics"][0], summary["strict_metrics"][0]):
            headline["note"] = about_judge["note"] or headline["note"]
    write_json(out_dir / "summary.json", summary)
    if not counts["ok"] and not counts["truncated"]:
        reasons = Counter(row["why"] for row in rows)
        raise DataError(
            f"none of {len(rows)} items was answered; most often: {reasons.most_common(1)[0][0]}",
            fix=f"see {out_dir / 'results.jsonl'}; after mending, run again with --retry-failed",
        )
    write_submission(benchmark, rows, out_dir)
    return summary


def _row(benchmark: Benchmark, task: Task, outcome: Outcome, verdict: Verdict | None) -> dict[str, Any]:
    item, judged = task.item, [verdict] if verdict else []
    judgement = {"judge": asdict(verdict)} if verdict else {}
    score = score_item(benchmark, item, outcome.completion, "upstream", *judged)
    strict = score_item(benchmark, item, outcome.completion, "fixed", *judged)
    why = score.why if score.value == strict.value else f"{score.why} · strict: {strict.why}"
    if _says_nothing(outcome):
        why = f"{SAID_NOTHING} · {why}"
    return {
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
        **judgement,
    }


def _says_nothing(outcome: Outcome) -> bool:
    return outcome.completion is not None and not outcome.completion.strip()


def _metric(metric: Metric) -> dict[str, Any]:
    names = ("name", "value", "low", "high", "note")
    return {name: getattr(metric, name) for name in names} | {"scored": metric.n_scored, "total": metric.n_total}
