"""A scorer as one object: a scoring rule, and all that a benchmark table needs in order to use it.

    exact = Scorer(exact_match_accuracy, takes("prediction", "annotation"))
    exact("Cat", "cat")                              # the rule itself: 1.0
    exact.read(item, "Cat")                          # the reply to an item: Reading(extracted="Cat", value=1.0)

A module defines its scorers beside their functions, in a dict called `SCORERS`, and its aggregates in `AGGREGATES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlm.eval.benchmark import Benchmark
from vlm.eval.loaders.common import Item
from vlm.eval.measures.rows import Metric, ResultRow
from vlm.eval.measures.text import Compat

Aggregate = Callable[[Benchmark, Sequence[ResultRow], Compat], list[Metric]]
"""function(benchmark, rows of results.jsonl, mode) -> metrics, the headline first."""

Inputs = Callable[[Item, str], dict[str, Any]]
"""function(item, reply) -> keyword arguments of a rule."""


class Reading(NamedTuple):
    """What a scorer read in a reply, and its value from 0 to 1."""

    extracted: str
    value: float


Reader = Callable[[Item, str, Any, Compat], Reading]
"""function(item, reply, result of the rule, mode) -> reading."""


def takes(reply: str, gold: str = "", **meta: str) -> Inputs:
    """Build the inputs of a rule from the names of its arguments.

    Args:
        reply: Argument that takes the reply.
        gold: Argument that takes the item's gold answer; "" when the rule does not see it.
        **meta: Argument = the key of the item's `meta` whose value it takes.
    """

    def inputs(item: Item, completion: str) -> dict[str, Any]:
        known = {gold: item.gold} if gold else {}
        return {reply: completion, **known, **{argument: item.meta[key] for argument, key in meta.items()}}

    return inputs


def as_value(item: Item, completion: str, result: Any, compat: Compat) -> Reading:
    """Take the result of a rule as the value of the whole reply."""
    return Reading(completion.strip(), float(result))


def as_answer(item: Item, completion: str, result: Any, compat: Compat) -> Reading:
    """Take the result of a rule as the answer that it read, which is right when it equals the gold answer."""
    return Reading(str(result or ""), float(result == item.gold))


def by_fields(score: str, read: str = "") -> Reader:
    """Take the value from the key `score` of a result, and what was read from the key `read`, if there is one."""

    def reader(item: Item, completion: str, result: Any, compat: Compat) -> Reading:
        return Reading(str(result[read] or "") if read else completion.strip(), float(result[score]))

    return reader


@dataclass(frozen=True)
class Scorer:
    """A rule that scores replies. Calling a scorer calls its rule.

    Attributes:
        rule: `rule(**inputs, compat="upstream")` returns what the published scorer returns, faults included;
            `compat="fixed"` corrects the faults that its docstring names.
        inputs: What the rule takes of an item and its reply. None: the rule scores whole files, or is one step of
            another rule; it has a name in order to be compared with published results, and no table can use it.
        reader: How the result is read: `as_value`, `as_answer`, or `by_fields`.
        strict_inputs: The same for `compat="fixed"`, where they differ.
        judged: The input that a judge's words replace. With `as_answer` they replace the result.
        needs_judge: Whether a reply without a judge's words has no score.
    """

    rule: Callable[..., Any]
    inputs: Inputs | None = None
    reader: Reader = as_value
    strict_inputs: Inputs | None = None
    judged: str = ""
    needs_judge: bool = False

    def __call__(self, *values: Any, **inputs: Any) -> Any:
        """Return the result of the rule."""
        return self.rule(*values, **inputs)

    def read(self, item: Item, completion: str, compat: Compat = "upstream", judged: str | None = None) -> Reading:
        """Score the reply to one item.

        Args:
            item: The question with its gold answer.
            completion: The reply.
            compat: The published rule, or its correction.
            judged: What a judge read in the reply; None without a judge.

        Raises:
            TypeError: No table can use this scorer.
            Exception: Whatever the published rule raises on this reply.
        """
        if judged is not None and self.reader is as_answer:
            return as_answer(item, completion, judged, compat)
        if self.inputs is None:
            raise TypeError(f"{self.rule.__name__} takes no single reply")
        chosen = self.strict_inputs or self.inputs if compat == "fixed" else self.inputs
        inputs = chosen(item, completion)
        if judged is not None and self.judged:
            inputs[self.judged] = judged
        return self.reader(item, completion, self.rule(**inputs, compat=compat), compat)
