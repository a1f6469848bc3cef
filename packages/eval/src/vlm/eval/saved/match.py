"""Match saved predictions to items. A prediction that cannot be matched to an item is never scored.

matched = match_predictions(items, predictions)      # matched.of_item: number of the item -> its predictions
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm.core.errors import DataError
from vlm.eval.backends.judge import question_of
from vlm.eval.loaders import Item
from vlm.eval.saved.predictions import Prediction

SHOWN = 3
"""Examples shown of each problem."""

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
class Matched:
    """Predictions matched to items by one kind of id, or by order.

    Attributes:
        how: The key of the id, or the order.
        proven: The ids need no further proof.
        of_item: Number of an item -> its predictions.
        extra: Predictions of no item.
        retyped: Predictions whose id fits only as another type.
        references: For each reference in the files, whether it is the item's own, and its prediction.
        questions: For each question in the files, whether it is the item's own.
    """

    how: str
    proven: bool = False
    of_item: dict[int, list[Prediction]] = field(default_factory=lambda: defaultdict(list))
    extra: list[Prediction] = field(default_factory=list)
    retyped: list[Prediction] = field(default_factory=list)
    references: list[tuple[bool, Prediction]] = field(default_factory=list)
    questions: list[bool] = field(default_factory=list)


def match_predictions(items: Sequence[Item], predictions: Sequence[Prediction]) -> Matched:
    """Match predictions to items by id, or by number in data order, which needs proof.

    Raises:
        DataError: They belong to other items, or nothing identifies their items.
    """
    keys = list(dict.fromkeys(key for p in predictions for key in p.ids))
    ways = [_by_id(items, predictions, key) for key in keys]
    ways += [_by_number(items, predictions, key) for key in [*keys, None]]
    ways.append(_by_question(items, predictions))
    good = [way for way in ways if way.of_item and _credible(way, items)]
    if good:
        return max(good, key=lambda way: len(way.of_item))
    tried = [f"by {w.how} {len(w.of_item)} of {len(items)} items, {_proof(w)}" for w in ways if w.of_item]
    raise DataError(
        f"{len(predictions)} predictions that cannot be matched to these items: "
        f"{', '.join(named(p) for p in predictions[:SHOWN])}; {'; '.join(tried) or 'no id is known'}",
        expected=f"ids as {', '.join(repr(item.id) for item in items[:SHOWN])} (the part before a / may be the name of "
        "the file or of its folder), or all items in data order with their questions or references",
        fix="name the right benchmark and all its files, or add the ids to the records",
    )


def _credible(way: Matched, items: Sequence[Item]) -> bool:
    """Tell whether nothing contradicts a match and, for mere numbers, the questions (or references) confirm it."""
    references, questions = _share([same for same, _ in way.references]), _share(way.questions)
    if references is not None and references < AGREEING:
        return False
    if way.how == QUESTION:
        return len(way.of_item) >= AGREEING * (len(way.of_item) + len(way.extra))
    if way.proven:
        return True
    if way.how == ORDER and (way.extra or len(way.of_item) < len(items)):
        return False
    if questions is not None:
        return questions >= AGREEING
    varied = len({repr(p.reference) for _, p in way.references}) > 2  # yes, no, yes, no fits any shift by two
    return varied or (way.how in NUMBERS and not way.extra and len(way.of_item) == len(items))


def _share(agree: Sequence[bool]) -> float | None:
    return sum(agree) / len(agree) if agree else None


def _proof(way: Matched) -> str:
    shares = {"references": _share([same for same, _ in way.references]), "questions": _share(way.questions)}
    agreeing = [f"{share:.0%} of the {name} agree" for name, share in shares.items() if share is not None]
    return " and ".join(agreeing) or "no references and no questions to compare"


def _by_id(items: Sequence[Item], predictions: Sequence[Prediction], key: str) -> Matched:
    """Match by the id under that key: the item's id, with or without its group, or its id in the official file.

    Under the key `image` the name of the item's image counts too.
    """
    matched, find = Matched(key, proven=key not in NUMBERS), _finder(items, images=key == "image")
    usual = Counter(type(p.ids[key]) for p in predictions if key in p.ids).most_common(1)[0][0]
    for prediction in predictions:
        given = prediction.ids.get(key)
        name = id_text(given)
        i = find(name, prediction.group) if name is not None else None
        if i is None:
            matched.extra.append(prediction)
            continue
        official = given if key == "id" else items[i].meta.get("question_id", given)  # our own ids are text
        if type(given) is not usual or type(given) is not type(official) or (isinstance(given, str) and given != name):
            matched.retyped.append(prediction)
        _add(matched, items, i, prediction)
    return matched


def named(prediction: Prediction) -> str:
    """Return a prediction's name in its file: its id, or its number."""
    return f"id {next(iter(prediction.ids.values()))!r:.60}" if prediction.ids else f"number {prediction.number}"


def _finder(items: Sequence[Item], *, images: bool) -> Callable[[str, str], int | None]:
    """Return a function (id as text, group) -> number of the item; None for a name that several items share.

    With `images` the names of the items' images are known too.
    """
    full: dict[str, set[int]] = {}
    official: dict[str, set[int]] = {}
    cluster: dict[str, set[int]] = {}
    for i, item in enumerate(items):
        tail = item.id.split("/", 1)[-1]
        for names, name in (
            (full, item.id),
            (full, f"{item.group}/{tail}"),
            (official, tail),
            (official, str(item.meta.get("question_id", tail))),
            (cluster, str(item.meta.get("cluster", "")) if images else ""),
        ):
            names.setdefault(name, set()).add(i)

    def find(name: str, group: str) -> int | None:
        for numbers in (full.get(f"{group}/{name}"), full.get(name), official.get(name), cluster.get(name)):
            if numbers:
                return next(iter(numbers)) if len(numbers) == 1 else None
        return None

    return find


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
    matched = Matched(ORDER if key is None else f"{key}, as a number in data order")
    members: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        members[item.group].append(i)
        members[""].append(i)
    for prediction in predictions:
        name = str(prediction.number) if key is None else id_text(prediction.ids.get(key))
        among = members[prediction.group if key is None else ""]
        if name is None or not name.isdecimal() or int(name) >= len(among):
            matched.extra.append(prediction)
        else:
            _add(matched, items, among[int(name)], prediction)
    return matched


def _by_question(items: Sequence[Item], predictions: Sequence[Prediction]) -> Matched:
    """Match by the question; where several items ask it, by the picture, the group and the reference too."""
    matched, asking = Matched(QUESTION, proven=True), defaultdict[str, list[int]](list)
    for i, item in enumerate(items):
        asking[_words(question_of(item))].append(i)
    for prediction in predictions:
        found = asking.get(_words(prediction.question or ""), [])
        names, given = {id_text(value) for value in prediction.ids.values()}, prediction.reference
        for narrower in (
            [i for i in found if str(items[i].meta.get("cluster", "")) in names],
            [i for i in found if items[i].group == prediction.group],
            [i for i in found if given is not None and _same(given, items[i].gold)],
        ):
            found = [i for i in found if i in narrower] or found
        if len(found) != 1:
            matched.extra.append(prediction)
        else:
            _add(matched, items, found[0], prediction)
    return matched


def _add(matched: Matched, items: Sequence[Item], i: int, prediction: Prediction) -> None:
    matched.of_item[i].append(prediction)
    if prediction.reference is not None and items[i].gold is not None:
        matched.references.append((_same(prediction.reference, items[i].gold), prediction))
    if prediction.question:
        ours, theirs = _words(question_of(items[i])), _words(prediction.question)
        matched.questions.append(bool(ours and theirs) and (theirs in ours or ours in theirs))


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
