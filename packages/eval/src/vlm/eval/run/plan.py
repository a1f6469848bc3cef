"""Plan an evaluation: each item's prompt, answer key and cost, and the document that it shares with its neighbors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

from vlm.core.errors import DataError
from vlm.core.sample.records import Medium, Part, text
from vlm.eval.backends.base import Backend, text_with_placeholders
from vlm.eval.benchmark import Benchmark
from vlm.eval.keys import content_key, file_hash
from vlm.eval.loaders import Item
from vlm.eval.run.blind import shuffle_media


@dataclass(frozen=True)
class Task:
    """One planned item: the key of its answer, its cost in tokens, and the limits on new tokens."""

    item: Item
    key: str
    cost: float
    limits: dict[str, int]

    @property
    def parts(self) -> list[Part]:
        """Texts and media of all messages, in reading order."""
        return [part for message in self.item.messages for part in message["content"]]

    @property
    def media(self) -> tuple[str, ...]:
        """Paths of the images and videos, in reading order."""
        return tuple(part["path"] for part in self.parts if part["type"] != "text")

    @property
    def question(self) -> str:
        """The user's text with `<image>` and `<video>` for the media, without the markup of the template.

        An answer that is given (teacher forcing) is not part of it.
        """
        asked = (m["content"] for m in self.item.messages if m["role"] != "assistant")
        return "".join(map(text_with_placeholders, asked))


class SharedDocument(NamedTuple):
    """Tasks whose prompts begin alike: their numbers, the tokens they share, and the tokens to compute for all.

    The shared beginning counts once in `cost`. `shared` is 0 for a prompt whose beginning no other has.
    """

    tasks: list[int]
    shared: float
    cost: float


def select_items(
    items: Sequence[Item], *, limit: int | None = None, shuffle_images: bool = False, seed: int = 0
) -> list[Item]:
    """Return the items to run: all or the first `limit`, with exchanged media for the blind control.

    Raises:
        DataError: No items, or two items with one id.
    """
    if not items:
        raise DataError("the benchmark has no items", fix="check its files with `vlm data check`")
    twice = [id_ for id_, n in Counter(item.id for item in items).items() if n > 1]
    if twice:
        raise DataError(f"{len(twice)} ids occur more than once, for example {twice[0]!r}", expected="one item per id")
    chosen = list(items)
    if shuffle_images:  # a file that is missing is given to no other item
        shuffled = iter(shuffle_media([item for item in items if not item.missing], seed))
        chosen = [item if item.missing else next(shuffled) for item in items]
    return chosen[:limit]


def plan_tasks(
    benchmark: Benchmark, backend: Backend, items: Sequence[Item], max_new_tokens: int | None = None
) -> list[Task]:
    """Return a task for each item. Files are read only to hash them.

    Args:
        benchmark: The table.
        backend: The model.
        items: The items to run.
        max_new_tokens: Token budget of every answer in place of the benchmark's.
    """
    tasks, generation = [], benchmark.generation
    for item in items:
        budget = item.meta.get("max_new_tokens", generation.by_group.get(item.group, generation.max_new_tokens))
        limits = {"max_new_tokens": int(max_new_tokens or budget), "min_new_tokens": generation.min_new_tokens}
        key = content_key(
            weights=backend.fingerprint,
            prompt=backend.prompt(item.messages),
            media=[_medium_key(p) for m in item.messages for p in m["content"] if p["type"] != "text"],
            decode={**backend.settings, **limits},
            **({"fault": item.fault} if item.fault else {}),  # rows that cannot be asked are told apart by it
        )
        tasks.append(Task(item, key, backend.cost(item.messages), limits))
    return tasks


def _medium_key(medium: Medium) -> list[Any]:
    """Return what identifies a medium in an answer key: its content; of a video also its range and frames."""
    if medium["type"] == "image":
        return [file_hash(medium["path"]), None]
    return [file_hash(medium["path"]), medium.get("clip"), *([medium["frames"]] if "frames" in medium else [])]


def documents(tasks: Sequence[Task], backend: Backend) -> list[SharedDocument]:
    """Group the tasks by the document that they ask about, documents in data order.

    Prompts belong together when their common beginning, in media and text, is at least half of the longest: then
    generation computes it once (`vlm.models.answers.document_length`).
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
        SharedDocument(sorted(group), common, sum(tasks[i].cost for i in group) - (len(group) - 1) * common)
        for group, common in zip(groups, shared, strict=True)
    ]
    return sorted(found, key=lambda document: document.tasks[0])


def _common(one: Task, other: Task, backend: Backend) -> float:
    """Estimate the tokens with which both prompts begin."""
    kept: list[Part] = []
    for mine, theirs in zip(one.parts, other.parts, strict=False):
        if mine == theirs:
            kept.append(mine)
            continue
        if mine["type"] == "text" and theirs["type"] == "text":
            same = takewhile(lambda pair: pair[0] == pair[1], zip(mine["text"], theirs["text"], strict=False))
            kept.append(text("".join(letter for letter, _ in same)))
        break
    return backend.cost([{"role": "user", "content": kept}]) if kept else 0.0
