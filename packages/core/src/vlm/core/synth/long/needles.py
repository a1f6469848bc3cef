"""The six tasks of MM-NIAH: what is hidden in a document, at which depths, and what is asked about it.

The construction is ours, after the published description of the tasks (MM-NIAH); V2PE's scripts are not published.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from PIL import Image

from vlm.core.synth.long.haystack_pool import Pool
from vlm.core.synth.long.materials import Material
from vlm.core.synth.long.pictures import PASTED, Picture, load, needle, paste, places
from vlm.core.synth.long.units import Unit

THINGS = ("lamp", "clock", "violin", "kettle", "ladder", "mirror", "basket", "drum", "compass", "lantern", "anchor")
ROOMS = ("kitchen", "garden", "cellar", "attic", "stable", "library", "workshop", "chapel", "bakery", "tower")
NAMES = ("Ada", "Bruno", "Clara", "Dario", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kemal", "Lena")
RELATIONS = (("older", "oldest"), ("taller", "tallest"), ("faster", "fastest"), ("stronger", "strongest"))
GRAY = (128, 128, 128)


@dataclass(frozen=True)
class Hidden:
    """Units to hide with their depths, the question, and its answer.

    The answer is a string, an option's index, or None, which stands for the number of needles in each picture of the
    document. `exclude`: sources that the rest of the document must not show.
    """

    units: list[tuple[float, Unit]]
    question: str
    answer: str | int | list[int] | None
    asked: list[Picture] = field(default_factory=list)
    choices: list[str] | None = None
    choice_pictures: list[Picture] | None = None
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Setting:
    """The inputs of a task: `name` begins the names of its pictures, `room` is for pictures, in tokens."""

    rng: random.Random
    pool: Pool
    depth: float
    name: str
    room: int
    number: int

    def text(self, sentence: str) -> Unit:
        """Return a sentence as a unit to hide."""
        return Unit(f"{sentence} ", self.pool.ruler.tokens(f"{sentence} "), part={"needle": sentence})

    def left(self, asked: list[Picture]) -> int:
        """Return the room for the document's pictures beside those of the question, in tokens."""
        return self.room - sum(self.pool.ruler.image_cost(picture.size) for picture in asked)

    def picture(self, picture: Picture, **part: Any) -> Unit:
        """Return a picture with a needle in it as a unit to hide."""
        return Unit("", self.pool.ruler.image_cost(picture.size) + 1, picture, {"needle": picture.name, **part})


def depths(rng: random.Random, mean: float, n: int) -> list[float]:
    """Return `n` depths evenly around `mean`, ascending and inside 0..1."""
    reach = min(mean, 1 - mean) * rng.uniform(0.3, 1) if n > 1 else 0.0
    return [mean + reach * (2 * k / (n - 1) - 1 if n > 1 else 0) for k in range(n)]


def retrieval_text(at: Setting) -> Hidden:
    """Hide one sentence that says what was put in a place."""
    room, thing = at.rng.choice(ROOMS), at.rng.choice(THINGS)
    unit = at.text(f"The little penguin hid a {thing} in the {room}.")
    return Hidden([(at.depth, unit)], f"What did the little penguin hide in the {room}?", thing)


def counting_text(at: Setting) -> Hidden:
    """Hide one to three sentences that each give a number, to be listed in order."""
    counts = [at.rng.randint(1, 4) for _ in range(at.rng.randint(1, 3))]
    # equal sentences would be one needle
    nights = at.rng.sample(("first", "second", "third", "fourth", "fifth"), len(counts))
    sentences = [
        f"On the {night} night the little penguin counted {count} star{'s' * (count > 1)}."
        for night, count in zip(nights, counts, strict=True)
    ]
    units = list(zip(depths(at.rng, at.depth, len(counts)), map(at.text, sentences), strict=True))
    question = "How many stars did the little penguin count each time? Give a JSON list in the order of the document, "
    return Hidden(units, question + "for example [2, 4].", counts)


def reasoning_text(at: Setting) -> Hidden:
    """Hide two or three sentences that compare neighbors in a chain, and ask who is first."""
    chain = at.rng.sample(NAMES, at.rng.randint(3, 4))
    more, most = at.rng.choice(RELATIONS)
    sentences = [f"{a} the penguin is {more} than {b}." for a, b in pairwise(chain)]
    at.rng.shuffle(sentences)
    units = list(zip(depths(at.rng, at.depth, len(sentences)), map(at.text, sentences), strict=True))
    names = sorted(chain)
    question = f"Who is the {most} of the penguins {', '.join(names[:-1])} and {names[-1]}?"
    return Hidden(units, question, chain[0])


def retrieval_image(at: Setting) -> Hidden:
    """Paste one of four pictures into a picture of the document."""
    sources = at.pool.needle_sources(at.rng, 4, "retrieval-image")
    options = [needle(source, at.rng, f"{at.name}-option{k}.jpg") for k, source in enumerate(sources)]
    answer = at.rng.randrange(4)
    exclude = frozenset(source.content for source in sources)
    carrier = at.pool.carrier(at.rng, exclude, at.left(options))
    hidden = _pasted(at, carrier, options[answer], 1, f"{at.name}-document.jpg")
    question = "Which of the following pictures is pasted into one of the pictures above?"
    return Hidden([(at.depth, hidden)], question, answer, [], None, options, exclude)


def counting_image(at: Setting) -> Hidden:
    """Paste a picture once or twice into one to three pictures of the document."""
    (source,) = at.pool.needle_sources(at.rng, 1, "counting-image")
    wanted = needle(source, at.rng, f"{at.name}-needle.jpg")
    exclude = frozenset((source.content,))
    units, room, shown = [], at.left([wanted]), set()
    for k, depth in enumerate(depths(at.rng, at.depth, at.rng.randint(1, 3))):
        carrier = at.pool.carrier(at.rng, exclude, room)
        room -= at.pool.ruler.image_cost(carrier.size)
        if k and (room < 0 or carrier.name in shown):
            break
        shown.add(carrier.name)
        units.append((depth, _pasted(at, carrier, wanted, at.rng.randint(1, 2), f"{at.name}-document{k}.jpg")))
    question = (
        "How often is this picture <image>\npasted into each of the pictures above? "
        "Give a JSON list with one number for each picture, in the order of the document."
    )
    return Hidden(units, question, None, [wanted], exclude=exclude)


def reasoning_image(at: Setting) -> Hidden:
    """Ask, in turn, which piece completes a picture, and where the camera moved between two pictures."""
    return _jigsaw(at) if at.number % 2 == 0 else _camera(at)


def _jigsaw(at: Setting) -> Hidden:
    source, other = at.pool.needle_sources(at.rng, 2, "reasoning-image")
    size = (448, 448)
    window = _window(source, at.rng, 1.0)
    (box,) = places(size, 1, at.rng)
    answer = at.rng.randrange(2)

    def draw() -> Image.Image:
        picture = load(source.path).resize(size, box=window)
        picture.paste(GRAY, box)
        return picture

    side = int(448 * PASTED)
    piece = Picture(
        f"{at.name}-option{answer}.jpg",
        (side, side),
        (source,),
        lambda: load(source.path).resize(size, box=window).crop(box),
    )
    foreign = needle(other, at.rng, f"{at.name}-option{1 - answer}.jpg")
    wrong = replace(foreign, size=(side, side), draw=lambda: foreign.draw().resize((side, side)))
    hidden = Picture(f"{at.name}-document.jpg", size, (source,), draw, (box,), {"window": list(window)})
    options = [piece, wrong] if answer == 0 else [wrong, piece]
    question = "A square piece of one of the pictures above is missing (grey). Which piece completes it?"
    exclude = frozenset((source.content, other.content))
    return Hidden([(at.depth, at.picture(hidden))], question, answer, [], None, options, exclude)


def _camera(at: Setting) -> Hidden:
    (source,) = at.pool.needle_sources(at.rng, 1, "reasoning-image")
    left, top, right, bottom = _window(source, at.rng, 0.7)
    shift = min(round(0.4 * (right - left)), source.size[0] - (right - left))
    start = at.rng.randint(0, source.size[0] - (right - left) - shift)
    windows = [(x, top, x + right - left, bottom) for x in (start, start + shift)]
    answer = at.rng.randrange(2)
    windows = windows if answer == 1 else windows[::-1]
    units = []
    for k, (depth, window) in enumerate(zip(depths(at.rng, at.depth, 2), windows, strict=True)):

        def draw(window: tuple[int, int, int, int] = window) -> Image.Image:
            return load(source.path).resize((448, 448), box=window)

        picture = Picture(f"{at.name}-document{k}.jpg", (448, 448), (source,), draw, (), {"window": list(window)})
        units.append((depth, at.picture(picture)))
    question = (
        "Two of the pictures above show parts of the same scene. "
        "Did the camera move to the left or to the right from the first to the second?"
    )
    exclude = frozenset((source.content,))
    return Hidden(units, question, answer, [], ["to the left", "to the right"], None, exclude)


def _window(source: Material, rng: random.Random, part: float) -> tuple[int, int, int, int]:
    """Return a random square window; its side is `part` of the shorter side of the source."""
    side = int(min(source.size) * part)
    left, top = rng.randint(0, source.size[0] - side), rng.randint(0, source.size[1] - side)
    return left, top, left + side, top + side


def _pasted(at: Setting, carrier: Picture, wanted: Picture, count: int, name: str) -> Unit:
    boxes = places(carrier.size, count, at.rng)
    return at.picture(paste(carrier, [(wanted, box) for box in boxes], name), count=count)


TASKS: dict[str, Callable[[Setting], Hidden]] = {
    "retrieval-text": retrieval_text,
    "retrieval-image": retrieval_image,
    "counting-text": counting_text,
    "counting-image": counting_image,
    "reasoning-text": reasoning_text,
    "reasoning-image": reasoning_image,
}
"""Task, as MM-NIAH names it -> what it hides."""
