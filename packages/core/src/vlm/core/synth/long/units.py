"""Units of text and images of a long document: hide units at given depths, fit the document to a budget."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

from vlm.core.errors import ConfigError

TOLERANCE = 0.01
"""Largest difference of a document from its budget, as a share of the budget."""

TRIES = 20
Built = TypeVar("Built")


@dataclass(frozen=True)
class Unit:
    """A piece of a document that is never cut: a sentence with its separator, or an image (`image` set, text empty).

    `cost` is in tokens; `part` is its origin, for the manifest.
    """

    text: str
    cost: int
    image: Any = None
    part: dict[str, Any] = field(default_factory=dict)


def place_units(units: Sequence[Unit], hidden: Sequence[tuple[float, Unit]]) -> list[Unit]:
    """Insert each hidden unit at its depth: 0 is the beginning, 1 the end of the document in tokens.

    A hidden unit goes into the last gap with less than its depth of all tokens before it; tokens of hidden units count
    too. Hidden units of equal depth keep their order.
    """
    ends = list(accumulate(unit.cost for unit in units))
    total = (ends[-1] if ends else 0) + sum(unit.cost for _, unit in hidden)
    document, taken, spent = [], 0, 0
    for depth, unit in sorted(hidden, key=lambda pair: pair[0]):
        gap = max(taken, bisect_left(ends, depth * total - spent)) if ends else 0
        document += [*units[taken:gap], unit]
        taken, spent = gap, spent + unit.cost
    return [*document, *units[taken:]]


def fit(
    budget: int,
    target: int,
    make: Callable[[int], tuple[int, Built]],
    *,
    what: str,
    over: bool = True,
    slack: int = 0,
) -> Built:
    """Call `make(target)` with corrected targets until its total meets the budget within 1 %.

    The tokens of a text are not exactly the sum of its sentences' tokens, so each target is corrected by what was
    missed.

    Args:
        budget: Tokens of the whole document.
        target: The first target.
        make: Returns (total tokens, document) for a target.
        what: Name of the document in the error message.
        over: Whether the total may be above the budget.
        slack: Tokens that a short document may miss, where they are more than 1 %.

    Raises:
        ConfigError: No document of that length was found.
    """
    tried = set()
    for k in range(TRIES):
        tried.add(target)
        total, built = make(target)
        # a prompt without its answer is a little shorter: when the total may not be above, aim closer first
        tolerance = TOLERANCE if over or k >= TRIES // 2 else TOLERANCE / 2
        if abs(total - budget) <= max(slack, tolerance * budget) and (over or total <= budget):
            return built
        missed = budget - total
        # sentences come in whole tokens: between a target that is too low and one too high, take a smaller step
        target += missed if target + missed not in tried else (1 if missed > 0 else -1)
    raise ConfigError(f"no {what} of {budget} tokens within {TOLERANCE:.0%}", fix="raise --tokens")
