"""The published tables with our numbers beside them, and the arithmetic of their averages.

A number of ours appears only with its marks: letters that point to footnotes. A printed average that is not the mean of
its own columns has one too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypedDict

from vlm.eval.printed import PublishedColumn, PublishedResults, PublishedTable, load_published
from vlm.eval.report.gather.comparability import caveats_of, settings_of
from vlm.eval.saved.evaluations import Evaluation, numbers_of

ROUNDING = 0.05 + 1e-9
"""What rounding to one digit can change: once in the printed average, once more through its printed columns."""

Number = int | float


class Average(TypedDict):
    """A printed average beside the mean of its printed columns.

    `adds_up`: they agree to the printed digit. `rounding`: rounded columns could just explain the difference.
    """

    system: str
    column: str
    mean_of: list[str]
    terms: list[Number]
    mean: float
    printed: Number
    adds_up: bool
    rounding: bool


class PublishedCell(TypedDict):
    """A published number; `recomputed` where it is an average that does not add up."""

    value: Number | None
    recomputed: float | None
    marks: list[str]


class OurCell(TypedDict):
    """Our number for a column, with the marks of its footnotes."""

    value: float | None
    low: float | None
    high: float | None
    scored: int
    total: int
    marks: list[str]


class ColumnRow(TypedDict):
    """A column of a published table as a row: the published numbers by system, ours by model and variant."""

    column: str
    benchmark: str | None
    metric: str | None
    mean_of: list[str]
    published: list[PublishedCell]
    ours: list[OurCell | None]


class SystemHead(TypedDict):
    """A published system, as the head of a column."""

    name: str
    about: str
    source: str


class OurHead(TypedDict):
    """A model and variant of ours, as the head of a column."""

    model: str
    variant: str


class Footnote(TypedDict):
    """The text behind a mark."""

    mark: str
    text: str


class TableBeside(TypedDict):
    """A published table with our numbers beside it."""

    system: str
    title: str
    systems: list[SystemHead]
    ours: list[OurHead]
    rows: list[ColumnRow]
    averages: list[Average]
    footnotes: list[Footnote]
    notes: list[str]


@dataclass
class Footnotes:
    """Texts with letters a, b, …, aa, each once, in the order in which they are first needed."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """Return the letters of a text, new ones for a new text."""
        if text not in self.texts:
            self.texts.append(text)
        n, letters = self.texts.index(text) + 1, ""
        while n:
            n, rest = divmod(n - 1, 26)
            letters = chr(97 + rest) + letters
        return letters

    def as_rows(self) -> list[Footnote]:
        """Return all texts with their letters."""
        return [{"mark": self.mark(text), "text": text} for text in self.texts]


def averages(table: PublishedTable) -> list[Average]:
    """Recompute each printed average from its printed columns."""
    found: list[Average] = []
    names = [column.name for column in table.columns]
    for column in table.columns:
        for system in table.systems:
            values = dict(zip(names, system.values, strict=True))
            terms = [value for name in column.mean_of if (value := values[name]) is not None]
            printed = values[column.name]
            if not terms or printed is None or len(terms) < len(column.mean_of):
                continue
            mean = fmean(terms)
            off = abs(mean - printed)
            found.append(
                {
                    "system": system.name,
                    "column": column.name,
                    "mean_of": column.mean_of,
                    "terms": terms,
                    "mean": mean,
                    "printed": printed,
                    "adds_up": off <= ROUNDING,
                    "rounding": off <= 2 * ROUNDING,
                }
            )
    return found


def tables_beside(evaluations: Sequence[Evaluation]) -> list[TableBeside]:
    """Return all published tables; rows are their columns (benchmarks), with our numbers beside the published ones.

    Ours are models with the chat template of the table's system, and models whose template is not known (a server's).
    """
    result = []
    for published in load_published():
        usable = [
            e
            for e in evaluations
            if settings_of(e)["template"] in published.templates and not e.variant.get("shuffle_images")
        ]
        result += [_beside(published, table, usable) for table in published.tables]
    return result


def _beside(published: PublishedResults, table: PublishedTable, evaluations: Sequence[Evaluation]) -> TableBeside:
    ours = _columns_of(table, evaluations)
    checks = averages(table)
    wrong = {(a["system"], a["column"]): a for a in checks if not a["adds_up"]}
    notes = Footnotes()
    rows: list[ColumnRow] = []
    for number, column in enumerate(table.columns):
        cells: list[PublishedCell] = []
        for system in table.systems:
            fault = wrong.get((system.name, column.name))
            marks = [notes.mark(_sentence(fault))] if fault else []
            recomputed = round(fault["mean"], 1) if fault else None
            cells.append({"value": system.values[number], "recomputed": recomputed, "marks": marks})
        known = {row["column"]: row["ours"] for row in rows}
        mine = [
            _our_cell(column, group, [known[name][i] for name in column.mean_of if name in known], notes)
            for i, group in enumerate(ours.values())
        ]
        rows.append(
            {
                "column": column.name,
                "benchmark": column.benchmark,
                "metric": column.metric,
                "mean_of": column.mean_of,
                "published": cells,
                "ours": mine,
            }
        )
    return {
        "system": published.title,
        "title": table.title,
        "systems": [{"name": s.name, "about": s.head, "source": s.source} for s in table.systems],
        "ours": [{"model": model, "variant": variant} for model, variant in ours],
        "rows": rows,
        "averages": checks,
        "footnotes": notes.as_rows(),
        "notes": table.notes,
    }


def _columns_of(
    table: PublishedTable, evaluations: Iterable[Evaluation]
) -> dict[tuple[str, str], dict[str, Evaluation]]:
    """Group by (model, variant): benchmark in lower case -> evaluation. A repeated run has a column to itself."""
    found: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for e in evaluations:
        benchmark = e.summary["benchmark"].lower()
        if benchmark not in table.benchmarks:
            continue
        key, again = (e.summary["model"], e.label), 1
        while benchmark in found.get(key, {}):
            again += 1
            key = (e.summary["model"], f"{e.label}, run {again}")
        found.setdefault(key, {})[benchmark] = e
    return found


def _our_cell(
    column: PublishedColumn, group: dict[str, Evaluation], terms: Sequence[OurCell | None], notes: Footnotes
) -> OurCell | None:
    """Return our number for a column; the mean of `terms` where the column has no metric of ours."""
    if column.benchmark is None:
        measured = [term for term in terms if term and term["value"] is not None]
        if not column.mean_of or len(measured) < len(column.mean_of):
            return None
        return {
            "value": fmean(term["value"] or 0.0 for term in measured),
            "low": None,
            "high": None,
            "scored": sum(term["scored"] for term in measured),
            "total": sum(term["total"] for term in measured),
            "marks": sorted({mark for term in measured for mark in term["marks"]}, key=lambda m: (len(m), m)),
        }
    e = group.get(column.benchmark.lower())
    metric = next((m for m in e.summary["metrics"] if m["name"] == column.metric), None) if e else None
    if e is None or metric is None:
        return None
    texts = [*caveats_of(e), *([metric["note"]] if metric["note"] else [])]
    return {**numbers_of(metric), "marks": [notes.mark(text) for text in texts]}


def _sentence(fault: Average) -> str:
    why = "rounded columns could just explain it" if fault["rounding"] else "rounding cannot explain it"
    return (
        f"Printed {fault['printed']}, but the mean of the {len(fault['terms'])} printed columns "
        f"is {fault['mean']:.2f}: {fault['mean']:.1f}; {why}."
    )
