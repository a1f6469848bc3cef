"""Match saved predictions to items. A prediction that cannot be matched to an item is never scored.

matched = match_predictions(items, predictions)      # matched.item_of: number of the item of each prediction
"""

import ast
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vlm.core.errors import DataError
from vlm.core.spill import Places
from vlm.eval.backends.judge import question_of
from vlm.eval.loaders import Item
from vlm.eval.saved.predictions import SHOWN, Prediction

AGREEING = 0.95
"""A match counts when at least this share of the predictions' references (questions) are those of the items."""

INSTRUCTION = re.compile(
    r"""
      (?:^|(?<=[.?!:\n])) \s* (?:please\s+)?
      (?:answer|respond|reply)\b (?:\s+the\s+question)? \s+ (?:with|using|directly|yes\ or\ no|in\ a|only)\b
      [^.?!\n]* [.?!]?
    | \bthere\ are\ several\ options:
    """,
    re.VERBOSE,
)
"""How to answer: benchmarks and harnesses add sentences of their own to the same question."""

QUESTION = "the question, with what the file says of its picture and answer"
"""`how` of a match by questions."""

NUMBERS = ("index", "doc_id")
"""Ids of harnesses that may be mere numbers in another order: a match by them needs proof."""


@dataclass
class Agreement:
    """How many of the references (questions) in the files are those of the items; `others`: predictions with others.

    `kinds` holds at most three different references.
    """

    n: int = 0
    others: "array[int]" = field(default_factory=lambda: array("i"))
    kinds: set[str] = field(default_factory=set)

    def add(self, same: bool, number: int, kind: str = "") -> None:
        """Compare one more, of the prediction with this number."""
        self.n += 1
        if not same:
            self.others.append(number)
        if len(self.kinds) < SHOWN:
            self.kinds.add(kind)

    @property
    def share(self) -> float | None:
        """The share that agrees; None where there is nothing to compare."""
        return (self.n - len(self.others)) / self.n if self.n else None


@dataclass
class Matched:
    """Predictions matched to items by one kind of id, or by order; both are named by their numbers.

    Attributes:
        how: The key of the id, or the order.
        items: The items.
        proven: The ids need no further proof.
        item_of: Number of the item of each prediction; -1 for a prediction of no item.
        found: Items with a prediction.
        retyped: Predictions whose id fits only as another type.
        references: Of the references in the files with the items' own.
        questions: Of the questions in the files with the items' own.
    """

    how: str
    items: Sequence[Item]
    proven: bool = False
    item_of: "array[int]" = field(default_factory=lambda: array("i"))
    found: int = 0
    retyped: "array[int]" = field(default_factory=lambda: array("i"))
    references: Agreement = field(default_factory=Agreement)
    questions: Agreement = field(default_factory=Agreement)

    def __post_init__(self) -> None:
        self._has = bytearray(len(self.items))

    @property
    def extra(self) -> Iterator[int]:
        """Numbers of the predictions of no item."""
        return (number for number, item in enumerate(self.item_of) if item < 0)

    def by_item(self) -> Iterator[list[int]]:
        """Yield the numbers of the predictions of each item."""
        items = np.array(self.item_of, np.int32)
        order = np.argsort(items, kind="stable").astype(np.int32)
        first = np.searchsorted(items[order], np.arange(len(self.items) + 1))
        for i in range(len(self.items)):
            yield order[first[i] : first[i + 1]].tolist()

    def add(self, i: int | None, prediction: Prediction) -> None:
        """Note the item of the next prediction, in their order; None for a prediction of no item."""
        number = len(self.item_of)
        self.item_of.append(-1 if i is None else i)
        if i is None:
            return
        self.found += not self._has[i]
        self._has[i] = True
        if prediction.reference is None and not prediction.question:
            return
        item = self.items[i]
        if prediction.reference is not None and item.gold is not None:
            same = _same(prediction.reference, item.gold)
            self.references.add(same, number, repr(prediction.reference))
        if prediction.question:
            ours, theirs = _words(question_of(item)), _words(prediction.question)
            self.questions.add(bool(ours and theirs) and (theirs in ours or ours in theirs), number)


def match_predictions(items: Sequence[Item], predictions: Sequence[Prediction]) -> Matched:
    """Match predictions to items by id, or by number in data order, which needs proof.

    Raises:
        DataError: They belong to other items, or nothing identifies their items.
    """
    keys = list(dict.fromkeys(key for p in predictions for key in p.ids))
    ways: list[Callable[[], Matched]] = [partial(_by_id, items, predictions, key) for key in keys]
    ways += [partial(_by_number, items, predictions, key) for key in [*keys, None]]
    ways.append(partial(_by_question, items, predictions))
    best: Matched | None = None
    tried: list[str] = []
    for match in ways:
        way = match()
        if way.found:
            tried.append(f"by {way.how} {way.found} of {len(items)} items, {_proof(way)}")
        if way.found and _credible(way) and (best is None or way.found > best.found):
            best = way
        if best is not None and best.found == len(items):  # no other way finds more
            break
    if best is not None:
        return best
    raise DataError(
        f"{len(predictions)} predictions that cannot be matched to these items: "
        f"{', '.join(named(p) for p in predictions[:SHOWN])}; {'; '.join(tried) or 'no id is known'}",
        expected=f"ids as {', '.join(repr(item.id) for item in items[:SHOWN])} (the part before a / may be the name of "
        "the file or of its folder), or all items in data order with their questions or references",
        fix="name the right benchmark and all its files, or add the ids to the records",
    )


def _credible(way: Matched) -> bool:
    """Tell whether nothing contradicts a match and, for mere numbers, the questions (or references) confirm it."""
    references, questions, extra = way.references.share, way.questions.share, sum(1 for _ in way.extra)
    if references is not None and references < AGREEING:
        return False
    if way.how == QUESTION:
        return way.found >= AGREEING * (way.found + extra)
    if way.proven:
        return True
    if way.how == ORDER and (extra or way.found < len(way.items)):
        return False
    if questions is not None:
        return questions >= AGREEING
    varied = len(way.references.kinds) > 2  # yes, no, yes, no fits any shift by two
    return varied or (way.how in NUMBERS and not extra and way.found == len(way.items))


def _proof(way: Matched) -> str:
    shares = {"references": way.references.share, "questions": way.questions.share}
    agreeing = [f"{share:.0%} of the {name} agree" for name, share in shares.items() if share is not None]
    return " and ".join(agreeing) or "no references and no questions to compare"


def _by_id(items: Sequence[Item], predictions: Sequence[Prediction], key: str) -> Matched:
    """Match by the id under that key: the item's id, with or without its group, or its id in the official file.

    Under the key `image` the name of the item's image counts too.
    """
    matched, find = Matched(key, items, proven=key not in NUMBERS), _finder(items, images=key == "image")
    usual = Counter(type(p.ids[key]) for p in predictions if key in p.ids).most_common(1)[0][0]
    for number, prediction in enumerate(predictions):
        given = prediction.ids.get(key)
        name = id_text(given)
        i = find(name, prediction.group) if name is not None else None
        if i is not None:
            official = given if key == "id" else items[i].meta.get("question_id", given)  # our own ids are text
            same_type = type(given) is usual and type(given) is type(official)
            if not same_type or (isinstance(given, str) and given != name):
                matched.retyped.append(number)
        matched.add(i, prediction)
    return matched


def named(prediction: Prediction) -> str:
    """Return a prediction's name in its file: its id, or its number."""
    return f"id {next(iter(prediction.ids.values()))!r:.60}" if prediction.ids else f"number {prediction.number}"


def _finder(items: Sequence[Item], *, images: bool) -> Callable[[str, str], int | None]:
    """Return a function (id as text, group) -> number of the item; None for a name that several items share.

    With `images` the names of the items' images are known too.
    """

    def full(item: Item) -> set[str]:
        return {item.id, f"{item.group}/{_tail(item)}"}

    def official(item: Item) -> set[str]:
        return {_tail(item), str(item.meta.get("question_id", _tail(item)))}

    def cluster(item: Item) -> set[str]:
        return {str(item.meta.get("cluster", "")) if images else ""}

    known = {kind: Places() for kind in (full, official, *([cluster] if images else []))}
    for i, item in enumerate(items):
        for kind, places in known.items():
            for name in kind(item):
                places.add(name, i)

    def find(name: str, group: str) -> int | None:
        for kind, wanted in ((full, f"{group}/{name}"), (full, name), (official, name), (cluster, name)):
            numbers = known[kind].find(wanted) if kind in known else []
            if len(numbers) > 1:
                return None
            if numbers and wanted in kind(items[numbers[0]]):
                return numbers[0]
        return None

    return find


def _tail(item: Item) -> str:
    return item.id.split("/", 1)[-1]


def id_text(given: Any) -> str | None:
    """Return an id as text: 3, 3.0 and ' 3' are '3'; None for a value that cannot be an id."""
    if isinstance(given, float) and given.is_integer():
        return str(int(given))
    if isinstance(given, bool) or not isinstance(given, int | str) or not str(given).strip():
        return None
    return str(given).strip()


ORDER = "the order in the file"
"""`how` of a match without ids."""


def _by_number(items: Sequence[Item], predictions: Sequence[Prediction], key: str | None) -> Matched:
    """Match by the number under that key, from 0 in data order.

    Without a key the number is the record's place in the file, within the group that the file names.
    """
    matched = Matched(ORDER if key is None else f"{key}, as a number in data order", items)
    members: dict[str, array[int]] = defaultdict(lambda: array("i"))
    for i, item in enumerate(items):
        members[item.group].append(i)
    for prediction in predictions:
        name = str(prediction.number) if key is None else id_text(prediction.ids.get(key))
        among = members[prediction.group] if prediction.group and key is None else range(len(items))
        good = name is not None and name.isdecimal() and int(name) < len(among)
        matched.add(among[int(name)] if name is not None and good else None, prediction)
    return matched


def _by_question(items: Sequence[Item], predictions: Sequence[Prediction]) -> Matched:
    """Match by the question; where several items ask it, by the picture, the group and the reference too."""
    matched, asking = Matched(QUESTION, items, proven=True), Places()
    for i, item in enumerate(items):
        asking.add(_words(question_of(item)), i)
    for prediction in predictions:
        asked = _words(prediction.question or "")
        found = [(i, items[i]) for i in asking.find(asked)]
        names, given = {id_text(value) for value in prediction.ids.values()}, prediction.reference
        for narrower in (
            [(i, item) for i, item in found if str(item.meta.get("cluster", "")) in names],
            [(i, item) for i, item in found if item.group == prediction.group],
            [(i, item) for i, item in found if given is not None and _same(given, item.gold)],
        ):
            kept = {i for i, _ in narrower}
            found = [(i, item) for i, item in found if i in kept] or found
        alone = len(found) == 1 and _words(question_of(found[0][1])) == asked
        matched.add(found[0][0] if alone else None, prediction)
    return matched


def _words(question: str) -> str:
    """Return the words of a question without media and without instructions; all of them if it has no others."""
    plain = re.sub(r"<[^>]*>", " ", question).lower().strip()
    return " ".join((INSTRUCTION.sub(" ", plain).strip() or plain).split())


def _same(theirs: Any, ours: Any) -> bool:
    """Tell whether two references are the same answer, or lists that share one (lists of numbers: equal)."""
    one, other = _texts(theirs), _texts(ours)
    return one == other if any(isinstance(x, int | float) for x in one) else bool(set(one) & set(other))


def _texts(reference: Any) -> list[Any]:
    if isinstance(reference, str) and reference.strip().startswith("["):
        try:
            reference = ast.literal_eval(reference.strip())
        except (ValueError, SyntaxError):
            return [reference.strip().lower()]
    values = reference if isinstance(reference, list | tuple) else [reference]
    numbers = all(isinstance(value, int | float) for value in values) and len(values) > 1
    return list(values) if numbers else [str(value).strip().lower() for value in values]
