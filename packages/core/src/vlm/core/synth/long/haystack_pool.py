"""The haystack of one split: prose as sentences with their token costs, and pictures that do not repeat."""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count

from vlm.core.errors import DataError
from vlm.core.synth.long.materials import Material, Materials
from vlm.core.synth.long.pictures import Picture, page, square, view
from vlm.core.synth.long.record_cost import Ruler
from vlm.core.synth.long.units import Unit

PAGES = 0.25
"""Share of the distractor pictures that are pages of prose."""

PAGES_OF_A_TEXT = 4
CANDIDATES = 40
"""Pictures tried for one that fits before the room counts as full."""


@dataclass(frozen=True)
class Pool:
    """Sources of one split and their costs for one model. `seed` decides the windows that views show."""

    sources: Materials
    ruler: Ruler
    seed: int
    _costs: dict[str, int] = field(default_factory=dict)

    def pictures(self, rng: random.Random, exclude: Collection[str] = ()) -> Iterator[Picture]:
        """Yield pictures without end in random order, none twice.

        Every image source comes whole, then windows of it, with pages of prose between them. `exclude`: content hashes
        of sources that must not be shown.
        """
        images: list[Material | None] = [source for source in self.sources.images if source.content not in exclude]
        shown = set()
        for k in count():
            for source in rng.sample(images, len(images)) or [None]:
                if source is None or rng.random() < PAGES:
                    sheet = page(rng.choice(self.sources.texts), rng.randrange(PAGES_OF_A_TEXT + k // 8))
                    if sheet.name not in shown:
                        shown.add(sheet.name)
                        yield sheet
                if source is not None:
                    yield view(source, k, self.seed)

    def carrier(self, rng: random.Random, exclude: Collection[str], room: int) -> Picture:
        """Return a picture of at most `room` tokens to paste a needle into, or else the cheapest kind."""
        chosen = next(self.pictures(rng, exclude))
        if self.ruler.image_cost(chosen.size) <= room:
            return chosen
        images = [source for source in self.sources.images if source.content not in exclude]
        if images:
            return square(rng.choice(images))
        return next(p for p in self.pictures(rng, exclude) if p.size[0] == p.size[1])

    def fill(self, rng: random.Random, room: int, exclude: Collection[str]) -> list[Picture]:
        """Return distractor pictures of at most `room` tokens in all, random until nothing more fits."""
        chosen: list[Picture] = []
        misses = 0
        for picture in self.pictures(rng, exclude):
            cost = self.ruler.image_cost(picture.size)
            if cost <= room:
                chosen.append(picture)
                room, misses = room - cost, 0
            else:
                misses += 1
            if misses > CANDIDATES:
                break
        return chosen

    def needle_sources(self, rng: random.Random, n: int, task: str) -> list[Material]:
        """Draw `n` different image sources.

        Raises:
            DataError: There are fewer.
        """
        if len(self.sources.images) < n:
            raise DataError(
                f"{task} needs {n} different source images in each split, found {len(self.sources.images)}",
                fix="name more folders with --images, or another --val-share",
            )
        return rng.sample(self.sources.images, n)

    def prose(self, rng: random.Random, target: int) -> list[list[Unit]]:
        """Return paragraphs of `target` tokens in all: random texts from their beginning, the last one cut at a word.

        When all texts are used they come again in another order.
        """
        paragraphs: list[list[Unit]] = []
        left = target
        while left > 0:
            for source in rng.sample(self.sources.texts, len(self.sources.texts)):
                for k, sentences in enumerate(source.paragraphs):
                    units = [
                        self._sentence(source, k, f"{sentence}{' ' if i + 1 < len(sentences) else chr(10)}")
                        for i, sentence in enumerate(sentences)
                    ]
                    paragraphs.append(units)
                    left -= sum(unit.cost for unit in units)
                    if left <= 0:
                        paragraphs[-1] = self._cut(units, left + sum(unit.cost for unit in units))
                        return paragraphs
        return paragraphs

    def _sentence(self, source: Material, paragraph: int, text: str) -> Unit:
        if text not in self._costs:
            self._costs[text] = self.ruler.tokens(text)
        return Unit(text, self._costs[text], part={"source": source, "paragraph": paragraph})

    def _cut(self, units: list[Unit], room: int) -> list[Unit]:
        """Return the beginning of a paragraph that costs at most `room` tokens."""
        kept: list[Unit] = []
        for unit in units:
            if unit.cost <= room:
                kept.append(unit)
                room -= unit.cost
                continue
            words = unit.text.split()
            while words and self.ruler.tokens(" ".join(words) + "\n") > room:
                words.pop()
            if words:
                text = " ".join(words) + "\n"
                kept.append(Unit(text, self.ruler.tokens(text), part=unit.part))
            break
        return kept
