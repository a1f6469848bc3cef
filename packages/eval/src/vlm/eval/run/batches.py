"""Turn batches of planned items into typed outcomes: an exception of one item costs no other item its answer."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from vlm.core.errors import VlmError
from vlm.core.sample.encoded import Encoded
from vlm.core.text import printable
from vlm.eval.backends.base import Backend, BackendReply, NoAnswer, Refused, is_out_of_memory
from vlm.eval.measures.reply import why_unanswered
from vlm.eval.run.outcomes import Kind, Outcome
from vlm.eval.run.plan import SharedDocument, Task
from vlm.eval.run.shards import batches

RECORDED = (
    VlmError,
    RuntimeError,
    ValueError,
    OSError,
    MemoryError,
    ArithmeticError,
    AssertionError,
    LookupError,
    TypeError,
)
"""Exceptions that become an item's outcome: those that models and files raise. Others end the run, its state saved."""

BATCH_TOKENS = 8192
"""Most tokens of a batch of unrelated prompts, padding counted.

Beyond some thousand tokens a prompt fills any processor by itself, and padded attention takes a mask of length x length
for each row: on one CPU core, four prompts of 3,400 tokens took 4.0 s together and 2.0 s one by one. A backend that
does not pad has its own `batch_tokens`.
"""

SHARED_TOKENS = 128
"""Tokens that questions must share to have batches to themselves.

Fewer are computed again in less time than a batch that is half empty costs, as each new token is a pass over all
weights. 200 questions, four about each picture of 16 tokens, took 3.2 CPU-seconds in batches of four, 2.4 in full ones
of eight.
"""

Batch = list[tuple[Task, Any]]
"""Tasks with their encoded inputs, of the type that the backend takes."""


def in_batches(
    tasks: Sequence[Task], found: Sequence[SharedDocument], batch_size: int, *, max_tokens: float = BATCH_TOKENS
) -> list[list[Task]]:
    """Divide the tasks into batches, in the order in which to run them.

    A batch has one budget of new tokens and, where several tasks ask about one document of at least `SHARED_TOKENS`,
    only that document.

    Args:
        tasks: The planned items.
        found: Their documents, as `documents` groups them.
        batch_size: Most items of a batch.
        max_tokens: Most tokens of a batch of unrelated prompts, padding counted.
    """
    shared = {i: number for number, one in enumerate(found) for i in one.tasks if one.shared >= SHARED_TOKENS}
    budgets: dict[int, list[int]] = {}
    for i, task in enumerate(tasks):
        budgets.setdefault(task.limits["max_new_tokens"], []).append(i)
    return [
        [tasks[members[i]] for i in batch]
        for members in budgets.values()
        for batch in batches(
            [tasks[i].cost for i in members], [shared.get(i) for i in members], batch_size, max_tokens=max_tokens
        )
    ]


def answers(
    backend: Backend, order: Sequence[list[Task]], *, as_they_are: bool = False
) -> Iterator[tuple[list[Task], list[Outcome]]]:
    """Yield each batch with its outcomes; the next one is encoded while the model answers this one.

    Args:
        backend: The model.
        order: The batches.
        as_they_are: Keep a reply that holds no answer, such as reasoning without an end: nobody scores it.
    """
    with ThreadPoolExecutor(1) as pool:
        futures = deque(pool.submit(encode, backend, batch) for batch in order[:1])
        for batch, following in zip_longest(order, order[1:]):
            encoded, failed = futures.popleft().result()
            if following:
                futures.append(pool.submit(encode, backend, following))
            yield batch, failed + ask(backend, encoded, as_they_are=as_they_are)


def encode(backend: Backend, tasks: Sequence[Task]) -> tuple[Batch, list[Outcome]]:
    """Return the inputs of the tasks that can be encoded, and the outcomes of those that cannot."""
    encoded, failed = [], []
    for task in tasks:
        if task.item.fault:
            failed.append(Outcome(task.key, task.item.id, "error", detail=task.item.fault))
            continue
        try:
            encoded.append((task, backend.encode(task.item.id, task.item.messages)))
        except RECORDED as error:
            failed.append(_failure(task, error))
    return encoded, failed


def ask(backend: Backend, batch: Batch, *, as_they_are: bool = False) -> list[Outcome]:
    """Return one outcome for each input; all have the same limits.

    A batch that fails is halved until each failing item is alone. `as_they_are`: see `answers`.
    """
    if not batch:
        return []
    tasks = [task for task, _ in batch]
    try:
        replies = backend.answer([encoded for _, encoded in batch], **tasks[0].limits)
        pairs = zip(batch, _checked(replies, len(batch)), strict=True)
        return [_outcome(*asked, reply, as_they_are) for asked, reply in pairs]
    except RECORDED as error:
        failed, memory = _failure(tasks[0], error), is_out_of_memory(error)
    # after the handler, because the exception held the frames with the tensors of the failed attempt
    if memory:
        backend.recover()
    if len(batch) == 1:
        return [failed]
    middle = len(batch) // 2
    halves = (batch[:middle], batch[middle:])
    return [outcome for half in halves for outcome in ask(backend, half, as_they_are=as_they_are)]


def _checked(replies: Sequence[BackendReply], expected: int) -> Sequence[BackendReply]:
    """Return the replies. Raises ValueError unless there is one text for each question: no reply is guessed."""
    if replies is None or len(replies) != expected:
        raise ValueError(f"the model returned {len(replies or ())} replies to {expected} questions")
    for reply in replies:
        if not isinstance(reply.text, str):
            raise ValueError(f"the model returned {reply.text!r:.60} instead of a text")
    return replies


def _outcome(task: Task, encoded: Any, reply: BackendReply, as_they_are: bool) -> Outcome:
    kind: Kind = "ok" if reply.finished else "truncated"
    if not as_they_are and (why := why_unanswered(reply.text, reply.finished)):
        outcome = Outcome(task.key, task.item.id, "unanswered", detail=unanswered_detail(why, reply.text, task.limits))
    else:
        outcome = Outcome(task.key, task.item.id, kind, completion=reply.text, detail=getattr(reply, "note", ""))
    if isinstance(encoded, Encoded):
        return replace(outcome, tokens=len(encoded), max_position=float(encoded.position_ids.max()))
    return outcome


def unanswered_detail(why: str, reply: str, limits: Mapping[str, int]) -> str:
    """Say why a reply holds no answer, how it begins, and what can help."""
    said = f"; the reply begins {printable(reply, 120)!r}" if reply.strip() else ""
    budget = f" within {limits['max_new_tokens']} tokens (raise it: --max-new-tokens)" if limits else ""
    return f"{why}{budget}{said}"


def _failure(task: Task, error: BaseException) -> Outcome:
    if isinstance(error, NoAnswer):
        return Outcome(task.key, task.item.id, "unanswered", detail=unanswered_detail(str(error), "", task.limits))
    if isinstance(error, Refused):
        return Outcome(task.key, task.item.id, "refused", detail=str(error))
    if is_out_of_memory(error):  # no byte counts: they differ from machine to machine
        return Outcome(task.key, task.item.id, "oom", detail="out of memory when run alone")
    return Outcome(task.key, task.item.id, "error", detail=f"{type(error).__name__}: {str(error)[:500]}")
