"""One Long-VQA record: a question about one picture, and as many others as the budget holds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from vlm.core.errors import ConfigError, DataError
from vlm.core.synth.long.pictures import Picture, original, page_size, together
from vlm.core.synth.long.record_cost import Measured, Ruler
from vlm.core.synth.long.vqa_set import Turn, VqaSet
from vlm.core.synth.sentences import SENTENCES

CELL = 448
"""Side of a cell on a page of several pictures, in pixels."""

AHEAD = 40
"""Pictures tried for one that fits as it is, before one is put on a page alone to make it smaller."""


@dataclass(frozen=True)
class Page:
    """Pictures, by content, that share one image of a record. `whole`: one picture, as its file is."""

    keys: tuple[str, ...]
    whole: bool
    cost: int


@dataclass
class VqaDocument:
    """A Long-VQA record. Call `choose` for the pages, `arrange`, `measure` with notes, then `record` and `parts`.

    `key` and `turn` are the picture asked about and its question with the answer; `name` begins the names of pages.
    """

    ruler: Ruler
    data: VqaSet
    key: str
    turn: Turn
    suffix: str
    name: str
    pages: list[Page] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def choose(self, rng: random.Random, keys: Sequence[str], tokens: int, *, paste: int, repeat: bool) -> list[Page]:
        """Return the pages of a record, the one with the asked picture first.

        Args:
            rng: Draws the other pictures.
            keys: Contents of the other pictures.
            tokens: Length of the record.
            paste: Most pictures on one page.
            repeat: Whether a picture may come again when all were used.

        Raises:
            ConfigError: The asked picture and one more do not fit.
            DataError: All pictures together are too few.
        """
        room = tokens - self.ruler.measure(self._question(1), [], self.turn[1]).total
        pages: list[Page] = []
        rest = rng.sample(list(keys), len(keys))
        while True:
            if not rest and repeat:
                rest = rng.sample(list(keys), len(keys))
            found = self._next(rest if pages else [self.key, *rest], room, paste, asked=not pages)
            if found is None:
                break
            pages.append(found)
            room -= found.cost
            rest = [key for key in rest if key not in found.keys]
        if sum(len(page.keys) for page in pages) < 2:
            raise ConfigError(
                f"{self.name}: {tokens} tokens do not hold the asked picture, another one and the question",
                fix="raise --tokens, or lower --max-tiles",
            )
        if not rest and room > 2 * self._page((self.key,)).cost:
            raise DataError(
                f"{len(keys) + 1} source images fill {tokens - room} of {tokens} tokens",
                fix="name more records, add folders of distractors with --images, lower --val-share, "
                "or allow --repeat-images",
            )
        return pages

    def _next(self, rest: Sequence[str], room: int, paste: int, *, asked: bool) -> Page | None:
        if not rest:
            return None
        if paste > 1:
            sizes = range(min(paste, len(rest)), 0, -1)
            return next((page for n in sizes if (page := self._page(tuple(rest[:n]))).cost <= room), None)
        for key in rest[: 1 if asked else AHEAD]:
            cost = self.ruler.image_cost(self.data.sources[key].size) + self._label_cost(0)
            if cost <= room:
                return Page((key,), True, cost)
        page = self._page((rest[0],))
        return page if page.cost <= room and not asked else None

    def _page(self, keys: tuple[str, ...]) -> Page:
        cost = self.ruler.image_cost(page_size(len(keys), CELL)) + self._label_cost(len(keys))
        return Page(keys, False, cost)

    def _label_cost(self, n: int) -> int:
        return sum(map(self.ruler.tokens, _label(500, 500, n).split("<image>")))

    def arrange(self, rng: random.Random, pages: list[Page], depth: float) -> None:
        """Put the page with the asked picture at about `depth` of the tokens, and draw all pages."""
        asked, others = pages[0], pages[1:]
        rng.shuffle(others)
        if len(asked.keys) > 1:
            asked = Page(tuple(rng.sample(asked.keys, len(asked.keys))), asked.whole, asked.cost)
        before, total = 0, sum(page.cost for page in pages)
        ahead = 0
        while ahead < len(others) and before + others[ahead].cost / 2 < depth * total:
            before += others[ahead].cost
            ahead += 1
        self.pages = [*others[:ahead], asked, *others[ahead:]]
        self.firsts = list(accumulate((len(page.keys) for page in self.pages), initial=1))
        self.pictures = []
        for k, page in enumerate(self.pages):
            members = [original(self.data.sources[key]) for key in page.keys]
            if page.whole:
                self.pictures += members
            else:
                labels = [f"Image {self._first(k) + j}" for j in range(len(members))]
                name = f"{self.name}-{k:03}.jpg"
                self.pictures.append(together(list(zip(members, labels, strict=True)), CELL, name))

    def _first(self, k: int) -> int:
        """Return the number of the first picture of page `k`."""
        return self.firsts[k]

    def _number(self, key: str) -> int:
        page = next(k for k, page in enumerate(self.pages) if key in page.keys)
        return self._first(page) + self.pages[page].keys.index(key)

    def notes(self, rng: random.Random, target: int) -> list[str]:
        """Return lines of `target` tokens in all, to fill the record.

        They are other questions of the set with their answers, then everyday sentences, the last of them cut at a word.
        """
        lines: list[str] = []
        known = [
            f"Note on Image {self._first(k) + j}: {question} {answer}\n"
            for k, page in enumerate(self.pages)
            for j, key in enumerate(page.keys)
            if key != self.key
            for question, answer in self.data.turns[key]
        ]
        everyday = iter(lambda: f"Note: {rng.choice(SENTENCES)}\n", None)
        for line in chain(rng.sample(known, len(known)), everyday):
            cost = self.ruler.tokens(line)
            if cost <= target:
                lines.append(line)
                target -= cost
            elif line.startswith("Note: "):
                words = line.split()
                while len(words) > 1 and self.ruler.tokens(" ".join(words) + "\n") > target:
                    words.pop()
                return [*lines, " ".join(words) + "\n"] if len(words) > 1 else lines
        return lines

    def _question(self, number: int) -> str:
        question = self.turn[0]
        suffix = "" if self.suffix.strip() in question else self.suffix
        return f"Question about Image {number}: {question}{suffix}"

    def _human(self, notes: Sequence[str]) -> str:
        labels = [
            _label(k + 1, self._first(k), 0 if page.whole else len(page.keys)) for k, page in enumerate(self.pages)
        ]
        return "".join([*labels, *notes]) + self._question(self._number(self.key))

    def measure(self, notes: Sequence[str], texts: Sequence[str] = ()) -> Measured:
        """Count the record as the model will see it."""
        sizes = [picture.size for picture in self.pictures]
        return self.ruler.measure(self._human(notes), sizes, self.turn[1], texts)

    def record(self, record_id: str, notes: Sequence[str], budget: int) -> dict[str, Any]:
        """Return the record in the published schema; `metadata` has more than its `context_length`."""
        human = self._human(notes)
        measured = self.measure(notes, [self._question(self._number(self.key))])
        at = next(k for k, page in enumerate(self.pages) if self.key in page.keys)
        name = self.pictures[at].name
        first = measured.images[at][0]
        boxes = []
        if not self.pages[at].whole:
            boxes = [list(self.pictures[at].boxes[self.pages[at].keys.index(self.key)])]
        metadata = {
            "context_length": measured.total,
            "context_length_text": measured.total - measured.image_tokens,
            "context_length_image": measured.image_tokens,
            "num_images": len(self.pictures),
            "placed_depth": [round(first / measured.total, 4)],
            "budget": budget,
            "needles": [name],
            "needle_tokens": [list(measured.images[at])],
            "needle_boxes": {name: boxes},
            "asked_image": self._number(self.key),
        }
        return {
            "id": record_id,
            "image": [picture.name for picture in self.pictures],
            "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": self.turn[1]}],
            "metadata": metadata,
        }

    def parts(self, notes: Sequence[str]) -> list[dict[str, Any]]:
        """Return every picture with its number, source and tokens, in order of the document."""
        parts = []
        for k, (page, span) in enumerate(zip(self.pages, self.measure(notes).images, strict=True)):
            for j, key in enumerate(page.keys):
                kind = "needle" if key == self.key else "image"
                part = {"kind": kind, "number": self._first(k) + j, "pixels": key, "tokens": list(span)}
                if not page.whole:
                    part["box"] = list(self.pictures[k].boxes[j])
                parts.append(part | {"file": self.pictures[k].name, "sha256": self.data.sources[key].sha256})
        return parts


def _label(page: int, first: int, n: int) -> str:
    """Return the text before an image: `n` is 0 for a picture as it is, else the pictures on its page."""
    if n == 0:
        return f"Image {first}: <image>\n"
    return f"Page {page} with Image {first}{f' to Image {first + n - 1}' if n > 1 else ''}: <image>\n"
