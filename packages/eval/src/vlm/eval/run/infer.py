"""Replies to questions without a benchmark: the batches and outcomes of an evaluation, and one file in input order.

    counts = run_infer(items, backend, Path("replies.jsonl"), max_new_tokens=256)

While it runs, replies are appended to a log in a hidden folder beside the file; a kill costs at most one batch, and the
same call goes on. The file itself appears in one piece at the end, and the folder goes.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

from vlm.core.errors import ConfigError, DataError
from vlm.core.home import beside, locked, write_atomic
from vlm.core.text import printable, shown
from vlm.eval.backends.base import Backend
from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import Item
from vlm.eval.run.batches import BATCH_TOKENS, answers, in_batches
from vlm.eval.run.outcomes import RETRY, Kind, Outcome, OutcomeLog, read_outcomes
from vlm.eval.run.plan import Task, documents, plan_tasks, select_items

LENGTH = "length"
"""What a reply is called that the token budget ended; in an evaluation `truncated`."""

Progress = Callable[[int, int, float | None], None]
"""Function that is called with questions done and in all; its third argument is None: nothing is scored."""

LOG = "outcomes.jsonl"

TABLE = Benchmark.model_validate({"name": "infer", "file": "-", "scorer": "exact"})
"""The table of questions that belong to no benchmark: nothing of a family's prompts or images is changed."""


class ReplyRow(TypedDict):
    """One line of the file: what was asked, the reply (None where there is none), its outcome, and why.

    `outcome`: ok, length (the budget ended first), refused, error, oom or unanswered. `tokens`: length of the prompt,
    where it is known. `key` identifies the reply by weights, media, prompt and settings.
    """

    id: str
    outcome: str
    reply: str | None
    why: str
    prompt: str
    images: list[str]
    tokens: int | None
    key: str


def run_infer(
    items: Sequence[Item],
    backend: Backend,
    out: Path,
    *,
    max_new_tokens: int,
    batch_size: int = 8,
    retry_failed: bool = False,
    replace: bool = False,
    progress: Progress = lambda *_: None,
) -> Counter[str]:
    """Ask the questions, write the replies in their order, and return how many there are of each outcome.

    Replies that are known by their key, from the file or from a killed run, are not asked for again.

    Args:
        items: The questions.
        backend: The model.
        out: The file to write, JSON lines of `ReplyRow`.
        max_new_tokens: Token budget of a reply.
        batch_size: Questions asked at once.
        retry_failed: Ask again where memory ran out or an error occurred.
        replace: Give up replies in the file that are to other questions, or of another model or settings.
        progress: Called after each batch with questions done and in all.

    Raises:
        ConfigError: The file holds something else, or replies that would be lost.
        DataError: No questions, two of one id, or nothing was answered.
        LockedError: Another process writes the same file.
    """
    tasks = plan_tasks(TABLE, backend, select_items(items), max_new_tokens)
    state = out.with_name(beside(out.name, ".vlm"))
    if state.parent.is_file() or out.is_dir():
        raise ConfigError(f"{shown(out)} is no file to write", expected="-o FILE.jsonl")
    try:
        with locked(state, f"vlm infer -o {out.name}"):
            rows = _rows(tasks, backend, out, state / LOG, max_new_tokens, batch_size, retry_failed, replace, progress)
    finally:
        if not (state / LOG).exists():  # nothing is left to go on from
            shutil.rmtree(state, ignore_errors=True)
    if not any(row["reply"] is not None for row in rows):
        reason = Counter(row["why"] for row in rows).most_common(1)[0][0]
        raise DataError(
            f"none of {len(rows):,} questions was answered; most often: {reason}",
            fix=f"correct the cause, then rerun the same command with --retry-failed; {shown(out)} names each",
        )
    return Counter(row["outcome"] for row in rows)


def _rows(
    tasks: Sequence[Task],
    backend: Backend,
    out: Path,
    log_file: Path,
    max_new_tokens: int,
    batch_size: int,
    retry_failed: bool,
    replace: bool,
    progress: Progress,
) -> list[ReplyRow]:
    """Ask what is not known, write the file, remove the log, and return the rows."""
    known = {} if replace and not _is_ours(out) else _written(out)
    known |= read_outcomes([log_file] if log_file.exists() else [])
    keys = {task.key for task in tasks}
    if (lost := sum(o.answered and o.key not in keys for o in known.values())) and not replace:
        raise ConfigError(
            f"{shown(out)} holds {lost:,} replies that would be lost: to other questions, or of another model or "
            "other settings",
            expected="the same model and settings, with at least the same questions",
            fix="-o OTHER.jsonl keeps both; --replace gives the old ones up",
        )
    known = {key: o for key, o in known.items() if not (retry_failed and o.outcome in RETRY)}
    todo = list({task.key: task for task in tasks if task.key not in known}.values())
    done, same = sum(task.key in known for task in tasks), Counter(task.key for task in tasks)
    progress(done, len(tasks), None)
    budget = getattr(backend, "batch_tokens", BATCH_TOKENS)
    order = in_batches(todo, documents(todo, backend), batch_size, max_tokens=budget)
    with OutcomeLog(log_file) as log:
        for batch, outcomes in answers(backend, order, as_they_are=True):
            log.append(outcomes)
            known.update({o.key: o for o in outcomes})
            done += sum(same[task.key] for task in batch)
            progress(done, len(tasks), None)
    rows = [_row(task, known[task.key], max_new_tokens) for task in tasks]
    write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    log_file.unlink()
    return rows


def _row(task: Task, outcome: Outcome, budget: int) -> ReplyRow:
    cut = outcome.outcome == "truncated"
    why = f"the budget of {budget:,} tokens ended first (--max-new-tokens)" if cut else outcome.detail
    return {
        "id": task.item.id,
        "outcome": LENGTH if cut else outcome.outcome,
        "reply": outcome.completion,
        "why": why,
        "prompt": task.question,
        "images": list(task.media),
        "tokens": outcome.tokens,
        "key": outcome.key,
    }


def _is_ours(out: Path) -> bool:
    with suppress(ConfigError):
        _written(out)
        return True
    return False


def _written(out: Path) -> dict[str, Outcome]:
    """Return the outcomes in a finished file, by key; none where there is no file.

    Raises:
        ConfigError: It is no file of replies: nobody's own file is overwritten.
    """
    if not out.exists():
        return {}
    found: dict[str, Outcome] = {}
    for where, row in _lines(out):
        kind = row.get("outcome")
        kind = "truncated" if kind == LENGTH else kind
        texts = [row.get("id"), row.get("key"), row.get("why")]
        reply = row.get("reply")
        if (
            kind not in get_args(Kind)
            or not all(isinstance(t, str) for t in texts)
            or not isinstance(reply, str | None)
        ):
            raise _not_ours(where)
        tokens = row.get("tokens")
        detail = "" if kind == "truncated" else str(row["why"])
        found[str(row["key"])] = Outcome(
            str(row["key"]), str(row["id"]), cast(Kind, kind), reply, detail, tokens if type(tokens) is int else None
        )
    return found


def _lines(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(out.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _not_ours(f"{shown(out)}:{number}") from error
        if not isinstance(row, dict):
            raise _not_ours(f"{shown(out)}:{number}")
        yield f"{shown(out)}:{number}", row


def _not_ours(where: str) -> ConfigError:
    return ConfigError(
        f"{printable(where)} is no reply of `vlm infer`: the file is somebody's own",
        expected="a new file, or replies of an earlier run",
        fix="-o OTHER.jsonl; --replace overwrites the file",
    )
