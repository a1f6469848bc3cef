"""Every sample of every finished evaluation: filtered, found, read, and compared between two runs.

samples = Samples(Runs(Path("runs")))
samples.choose(Wanted(benchmark="POPE", score="wrong", text="dog"))     # [(evaluation, row number), …]
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from vlm.cli.server.views.index import SampleIndex
from vlm.cli.server.views.runs import Runs
from vlm.cli.server.views.tail import Stamp, stamp_of
from vlm.core.errors import DataError

TEXT_BYTES = 1 << 29
"""Characters of searchable text that are kept; of more, the text that was used last."""

SCORES: dict[str, Callable[[float | None], bool]] = {
    "right": lambda s: s is not None and s >= 1,
    "partial": lambda s: s is not None and 0 < s < 1,
    "wrong": lambda s: s is not None and s <= 0,
    "unscored": lambda s: s is None,
}
"""Filter of scores -> whether a score passes."""

SCORERS_DIFFER = "scorers differ"
MOVED = "moved"


class Wanted(BaseModel):
    """What is chosen; "" chooses all. `evaluation` and `against` are ids; with `against`, `kind` is what moved."""

    model_config = ConfigDict(frozen=True)
    evaluation: str = ""
    benchmark: str = ""
    model: str = ""
    group: str = ""
    outcome: str = ""
    score: str = ""
    text: str = ""
    against: str = ""
    kind: str = ""


class WantedRows(Wanted):
    """And which of the samples that pass, by their number in the list."""

    offset: int = Field(0, ge=0)
    limit: int = Field(100, ge=0, le=500)


class Place(NamedTuple):
    """A sample: its evaluation and its number among the rows that can be read."""

    evaluation: str
    number: int


class Samples:
    """The samples of the evaluations of `runs`. Any thread may call it."""

    def __init__(self, runs: Runs):
        self.runs = runs
        self._lock, self._reading, self._comparing = Lock(), Lock(), Lock()
        self._indices: dict[str, tuple[Stamp, SampleIndex]] = {}
        self._texts: OrderedDict[str, int] = OrderedDict()
        self._chosen: OrderedDict[tuple[Any, ...], list[Place]] = OrderedDict()
        self._compared: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def ids(self) -> list[str]:
        """Return the evaluations that have results."""
        found = self.runs.found()["evaluations"]
        return [id_ for id_ in found if (self.runs.root / id_ / "results.jsonl").is_file()]

    def index(self, id_: str) -> SampleIndex:
        """Return the rows of an evaluation, read again when its file changed.

        Raises:
            KeyError: No such evaluation.
            DataError: Its file cannot be read at all.
        """
        folder = self.runs.folder(id_)
        if folder is None or not (folder / "results.jsonl").is_file():
            raise KeyError(id_)
        stamp = stamp_of(folder / "results.jsonl")
        with self._reading:  # one at a time: two pages that open at once read each file once
            known = self._indices.get(id_)
            if known is None or known[0] != stamp:
                head = self.runs.evaluation(id_)
                known = self._indices[id_] = (stamp, SampleIndex(folder, id_, head))
                self._texts.pop(id_, None)
            self._keep_text(id_, known[1])
        return known[1]

    def readable(self) -> list[SampleIndex]:
        """Return all evaluations whose results can be read."""
        found = []
        for id_ in self.ids():
            with suppress(DataError, KeyError):
                found.append(self.index(id_))
        return found

    def known(self) -> list[SampleIndex]:
        """Return the evaluations that are read already."""
        return [index for _, index in list(self._indices.values())]

    def _keep_text(self, id_: str, index: SampleIndex) -> None:
        self._texts[id_] = len(index.text)
        self._texts.move_to_end(id_)
        while len(self._texts) > 1 and sum(self._texts.values()) > TEXT_BYTES:
            oldest, _ = self._texts.popitem(last=False)
            self._indices[oldest][1].forget_text()

    def choose(self, wanted: Wanted) -> list[Place]:
        """Return the samples that pass all filters, evaluations in the order of their titles, rows in data order.

        Of all evaluations those are left out that cannot be read.

        Raises:
            KeyError: It names an evaluation that is not there.
            DataError: It names one that cannot be read, or two that cannot be compared.
        """
        indices = [self.index(wanted.evaluation)] if wanted.evaluation else self.readable()
        key = (wanted, tuple(index.stamp for index in indices))
        with self._lock:
            if key in self._chosen:
                self._chosen.move_to_end(key)
                return self._chosen[key]
        moved = self.moved(wanted.evaluation, wanted.against) if wanted.against else None
        found: list[Place] = []
        for index in sorted(indices, key=lambda i: (i.head["title"].lower(), i.head["model"], i.id)):
            if wanted.benchmark in ("", index.head["title"]) and wanted.model in ("", index.head["model"]):
                found += [Place(index.id, number) for number in self._numbers(index, wanted, moved)]
        with self._lock:
            self._chosen[key] = found
            while len(self._chosen) > 16:
                self._chosen.popitem(last=False)
        return found

    def _numbers(self, index: SampleIndex, wanted: Wanted, moved: dict[str, Any] | None) -> Sequence[int]:
        numbers: Sequence[int] = range(len(index.rows))
        if wanted.text:
            numbers = index.search(wanted.text)
            self._keep_text(index.id, index)
        rows = index.rows
        if wanted.group:
            numbers = [n for n in numbers if rows[n].group == wanted.group]
        if wanted.outcome:
            numbers = [n for n in numbers if rows[n].outcome == wanted.outcome]
        if wanted.score == SCORERS_DIFFER:
            numbers = [n for n in numbers if rows[n].score != rows[n].strict]
        elif wanted.score:
            passes = SCORES.get(wanted.score)
            numbers = [n for n in numbers if passes and passes(rows[n].score)]
        if moved is not None:
            kinds = {id_: sample["kind"] for id_, sample in moved.items()}
            asked = wanted.kind
            numbers = [
                n
                for n in numbers
                if (kind := kinds.get(rows[n].id))
                and (not asked or kind == asked or (asked == MOVED and kind != "same"))
            ]
        return numbers

    def compare(self, a: str, b: str) -> Any:
        """Return `vlm diff` of two evaluations, with all samples of both under `all`.

        Raises:
            KeyError: One of them is not there.
            DataError: They are of different benchmarks, share no item, or one is damaged.
        """
        sides = [self.index(id_) for id_ in (a, b)]
        if sides[0].head["benchmark"] != sides[1].head["benchmark"]:
            raise DataError(
                f"{sides[0].head['title']} and {sides[1].head['title']} are two benchmarks",
                expected="two evaluations of one benchmark",
            )
        key = tuple((side.id, side.stamp) for side in sides)
        with self._comparing:  # the list and what stands above it ask at the same time
            if key not in self._compared:
                self._compared[key] = compared(*sides)
                while len(self._compared) > 4:
                    self._compared.popitem(last=False)
            return self._compared[key]

    def moved(self, a: str, b: str) -> dict[str, Any]:
        """Return id -> what moved, for all samples of both evaluations."""
        found: dict[str, Any] = self.compare(a, b)["all"]
        return found

    def same_item(self, index: SampleIndex, id_: str) -> list[Place]:
        """Return the item in other evaluations of the same benchmark."""
        return [
            Place(theirs.id, theirs.numbers[id_])
            for theirs in self.readable()
            if theirs.id != index.id and theirs.head["benchmark"] == index.head["benchmark"] and id_ in theirs.numbers
        ]


def compared(a: SampleIndex, b: SampleIndex) -> dict[str, Any]:
    """Return `vlm diff` of two evaluations; in place of what moved, all samples of both by their ids."""
    from vlm.eval.saved.diff import compare_evaluations
    from vlm.eval.saved.evaluations import find_evaluations

    pair = [find_evaluations([side.folder])[0] for side in (a, b)]
    made: dict[str, Any] = dict(compare_evaluations((pair[0], pair[1])))
    moved = {sample["id"]: sample for sample in made.pop("moved")}
    same = [row.id for row in a.rows if row.id in b.numbers]
    return made | {"all": {id_: moved.get(id_, {"kind": "same", "causes": []}) for id_ in same}}
