"""From a batch of planned items to typed outcomes: no exception of one item costs its neighbours their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm.core.errors import VlmError
from vlm.eval.backends import Backend, TooLong, is_out_of_memory
from vlm.eval.loaders import Item
from vlm.eval.outcomes import Kind, Outcome

RECORDED = (VlmError, RuntimeError, ValueError, OSError, MemoryError)
"""Exceptions that become an item's outcome. Anything else is a bug of ours and stops the run, with its state saved."""


@dataclass(frozen=True)
class Task:
    """One planned item: the `key` of its answer, its cost in tokens, and the limits on new tokens."""

    item: Item
    key: str
    cost: float
    limits: dict[str, int]

    @property
    def media(self) -> tuple[str, ...]:
        """Paths of the images and videos, in reading order."""
        return tuple(p["path"] for m in self.item.messages for p in m["content"] if p["type"] != "text")

    @property
    def question(self) -> str:
        """The user's text with `<image>` and `<video>` where media stand, without the markup of the template.

        An answer that is given (teacher forcing) is no part of it.
        """
        parts = [p for m in self.item.messages if m["role"] != "assistant" for p in m["content"]]
        return "".join(p["text"] if p["type"] == "text" else f"<{p['type']}>" for p in parts)


Batch = list[tuple[Task, Any]]


def encode(backend: Backend, tasks: Sequence[Task]) -> tuple[Batch, list[Outcome]]:
    """The inputs of those that could be encoded, and the outcomes of those that could not."""
    encoded, failed = [], []
    for task in tasks:
        try:
            encoded.append((task, backend.encode(task.item.id, task.item.messages)))
        except TooLong as error:
            failed.append(Outcome(task.key, task.item.id, "refused", detail=str(error)))
        except RECORDED as error:
            failed.append(_failure(task, error))
    return encoded, failed


def ask(backend: Backend, batch: Batch) -> list[Outcome]:
    """One outcome for each input; all share their limits.

    A batch that fails is halved until the failing items stand alone.
    """
    if not batch:
        return []
    try:
        replies = backend.answer([encoded for _, encoded in batch], **batch[0][0].limits)
    except RECORDED as error:
        failed = error
    else:
        kinds: list[Kind] = ["ok" if reply.finished else "truncated" for reply in replies]
        return [
            Outcome(task.key, task.item.id, kind, completion=reply.text)
            for (task, _), kind, reply in zip(batch, kinds, replies, strict=True)
        ]
    if is_out_of_memory(failed):
        backend.recover()
    if len(batch) == 1:
        return [_failure(batch[0][0], failed)]
    middle = len(batch) // 2
    return ask(backend, batch[:middle]) + ask(backend, batch[middle:])


def _failure(task: Task, error: BaseException) -> Outcome:
    if is_out_of_memory(error):  # no byte counts: they differ from machine to machine
        return Outcome(task.key, task.item.id, "oom", detail="out of memory when run alone")
    return Outcome(task.key, task.item.id, "error", detail=f"{type(error).__name__}: {str(error)[:500]}")
