"""What is to be asked: each item's prompt, answer key, cost, and the document that it shares with its neighbors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

from vlm.core.errors import DataError
from vlm.core.sample.records import text
from vlm.eval.backends.base import Backend
from vlm.eval.benchmark import Benchmark
from vlm.eval.keys import content_key, file_hash
from vlm.eval.loaders import Item
from vlm.eval.run.blind import shuffle_media


@dataclass(frozen=True)
class Task:
    """One planned item: the `key` of its answer, its cost in tokens, and the limits on new tokens."""

    item: Item
    key: str
    cost: float
    limits: dict[str, int]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Texts and media of all messages, in reading order."""
        return [part for message in self.item.messages for part in message["content"]]

    @property
    def media(self) -> tuple[str, ...]:
        """Paths of the images and videos, in reading order."""
        return tuple(part["path"] for part in self.parts if part["type"] != "text")

    @property
    def question(self) -> str:
        """The user's text with `<image>` and `<video>` where media stand, without the markup of the template.

        An answer that is given (teacher forcing) is no part of it.
        """
        parts = [p for m in self.item.messages if m["role"] != "assistant" for p in m["content"]]
        return "".join(p["text"] if p["type"] == "text" else f"<{p['type']}>" for p in parts)


class Document(NamedTuple):
    """Tasks (their numbers) whose prompts begin alike, and the tokens to compute when that beginning is computed once.

    `shared` 0: a prompt that has its beginning to itself.
    """

    tasks: list[int]
    shared: float
    cost: float


def select(
    items: Sequence[Item], *, limit: int | None = None, shuffle_images: bool = False, seed: int = 0
) -> list[Item]:
    """The items to run: all or the first `limit`, with exchanged media for the blind control.

    Raises:
        DataError: no items, or two items with one id.
    """
    if not items:
        raise DataError("the benchmark has no items", fix="check its files with `vlm data check`")
    twice = [id_ for id_, n in Counter(item.id for item in items).items() if n > 1]
    if twice:
        raise DataError(f"{len(twice)} ids occur more than once, for example {twice[0]!r}", expected="one item per id")
    chosen = shuffle_media(items, seed) if shuffle_images else list(items)
    return chosen[:limit]


def plan(benchmark: Benchmark, backend: Backend, items: Sequence[Item]) -> list[Task]:
    """Prompt, budget, cost and answer key of each item; reads file contents only to hash them."""
    tasks, generation = [], benchmark.generation
    for item in items:
        budget = item.meta.get("max_new_tokens", generation.by_group.get(item.group, generation.max_new_tokens))
        limits = {"max_new_tokens": int(budget), "min_new_tokens": generation.min_new_tokens}
        media = [p for m in item.messages for p in m["content"] if p["type"] != "text"]
        key = content_key(
            weights=backend.fingerprint,
            prompt=backend.prompt(item.messages),
            media=[[file_hash(p["path"]), p.get("clip"), *([p["frames"]] if "frames" in p else [])] for p in media],
            decode={**backend.settings, **limits},
        )
        tasks.append(Task(item, key, backend.cost(item.messages), limits))
    return tasks


def documents(tasks: Sequence[Task], backend: Backend) -> list[Document]:
    """The tasks by the document that they ask about, documents in data order.

    Prompts belong together when what they all have in common, in media and text, is at least half of the longest:
    then generation computes it once (`vlm.models.generation.batch.document_length`).
    """
    signs = [[repr(part) if part["type"] != "text" else part["text"] for part in task.parts] for task in tasks]
    order = sorted(range(len(tasks)), key=lambda i: (tasks[i].limits["max_new_tokens"], signs[i], i))
    groups: list[list[int]] = []
    shared: list[float] = []
    longest = 0.0
    for i in order:
        if groups and tasks[groups[-1][0]].limits == tasks[i].limits:
            common = min(_common(tasks[groups[-1][-1]], tasks[i], backend), shared[-1] or tasks[i].cost)
            if common and 2 * common >= max(longest, tasks[i].cost):
                groups[-1].append(i)
                shared[-1], longest = common, max(longest, tasks[i].cost)
                continue
        groups.append([i])
        shared.append(0.0)
        longest = tasks[i].cost
    found = [
        Document(sorted(group), common, sum(tasks[i].cost for i in group) - (len(group) - 1) * common)
        for group, common in zip(groups, shared, strict=True)
    ]
    return sorted(found, key=lambda document: document.tasks[0])


def _common(one: Task, other: Task, backend: Backend) -> float:
    """Tokens (estimated) with which both prompts begin."""
    kept = []
    for mine, theirs in zip(one.parts, other.parts, strict=False):
        if mine == theirs:
            kept.append(mine)
            continue
        if mine["type"] == theirs["type"] == "text":
            same = takewhile(lambda pair: pair[0] == pair[1], zip(mine["text"], theirs["text"], strict=False))
            kept.append(text("".join(letter for letter, _ in same)))
        break
    return backend.cost([{"role": "user", "content": kept}]) if kept else 0.0
