"""A long document as units of text and images: fill it to a budget, hide units at given depths, fit it exactly."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

from vlm.core.errors import ConfigError

TOLERANCE = 0.01
"""A document differs from its budget by at most this part of it."""

TRIES = 20
Built = TypeVar("Built")


@dataclass(frozen=True)
class Unit:
    """A piece of a document that is never cut: a sentence with its separator, or an image (`image` set, text empty).

    `cost` is in tokens; `part` says where it came from, for the manifest.
    """

    text: str
    cost: int
    image: Any = None
    part: dict[str, Any] = field(default_factory=dict)


def place_units(units: Sequence[Unit], hidden: Sequence[tuple[float, Unit]]) -> list[Unit]:
    """Return `units` with each hidden one in the last gap with less than its depth (0..1) of all tokens before it, those of
    the hidden ones counted too.

    The order of hidden units of equal depth is kept.
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
    """Return `make(target)` -> (total tokens, document), with another target until the total meets the budget within 1 %.

    The tokens of a text are not exactly the sum of its sentences', so that the target is corrected by what was missed.

    Args:
        over: whether the total may be above the budget.
        slack: tokens that a short document may miss, where they are more than 1 %.

    Raises:
        ConfigError: no document of that length was found.
    """
    tried = set()
    for k in range(TRIES):
        tried.add(target)
        total, built = make(target)
        # a prompt without its answer is a little shorter: without slack above, aim closer first
        tolerance = TOLERANCE if over or k >= TRIES // 2 else TOLERANCE / 2
        if abs(total - budget) <= max(slack, tolerance * budget) and (over or total <= budget):
            return built
        missed = budget - total
        # sentences come in whole tokens: between two targets that miss on either side, a smaller step finds the one
        target += missed if target + missed not in tried else (1 if missed > 0 else -1)
    raise ConfigError(f"no {what} of {budget} tokens within {TOLERANCE:.0%}", fix="raise --tokens")
