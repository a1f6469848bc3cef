"""The published tables with our column beside, and the arithmetic of their averages.

`vlm/eval/published/*.yaml` holds each table as printed. A number of ours stands in it only with its marks: letters that
point to footnotes. A printed average that is not the mean of its own columns has one, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self

from pydantic import Field, model_validator

from vlm.core.config import Strict, load_yaml, package_tables, parse
from vlm.eval.report.gather.collect import Evaluation, asked, incomparable, interval_of

ORDER = ("v2pe", "internvl_chat_v1_2", "convllava")
"""The systems as the report shows them."""

ROUNDING = 0.05 + 1e-9
"""What rounding to one digit can change: once in the printed average, once more through its printed columns."""


class Column(Strict):
    """A column of a published table. `benchmark` and `metric` name ours; `mean_of` are the columns it averages."""

    name: str
    benchmark: str | None = None
    metric: str | None = None
    mean_of: list[str] = Field(default_factory=list)


class System(Strict):
    """A row: `values` in the order of the columns, None where nothing was published."""

    name: str
    about: str = ""
    source: str
    values: list[int | float | None]


class Table(Strict):
    """One table as printed."""

    title: str
    columns: list[Column]
    systems: list[System]
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [column.name for column in self.columns]
        for system in self.systems:
            if len(system.values) != len(names):
                raise ValueError(f"{system.name}: {len(system.values)} values, {len(names)} columns")
        unknown = {name for column in self.columns for name in column.mean_of} - set(names)
        if unknown:
            raise ValueError(f"mean_of names no column: {', '.join(sorted(unknown))}")
        return self


class Published(Strict):
    """The tables of one system. `settings`: how it was measured (key of `reasons.asked` -> what is the same)."""

    title: str
    family: str
    settings: dict[str, list[Any]]
    settings_source: str
    tables: list[Table]


def load_published() -> list[Published]:
    """The shipped tables. Raises ConfigError with every fault of a file."""
    paths = package_tables("vlm.eval", "published")
    return [parse(load_yaml(paths[stem]), Published, where=str(paths[stem])) for stem in ORDER]


def averages(table: Table) -> list[dict[str, Any]]:
    """Each printed average beside the mean of its printed columns.

    `adds_up`: they agree to the printed digit. `rounding`: rounded columns could just explain the difference.
    """
    found = []
    names = [column.name for column in table.columns]
    for column in table.columns:
        for system in table.systems:
            values = dict(zip(names, system.values, strict=True))
            terms = [values[name] for name in column.mean_of]
            printed = values[column.name]
            if not terms or printed is None or None in terms:
                continue
            mean = fmean(term for term in terms if term is not None)
            off = abs(mean - printed)
            verdict = {"adds_up": off <= ROUNDING, "rounding": off <= 2 * ROUNDING}
            names_of = {"system": system.name, "column": column.name, "mean_of": column.mean_of}
            found.append({**names_of, "terms": terms, "mean": mean, "printed": printed, **verdict})
    return found


@dataclass
class Footnotes:
    """Texts with letters a, b, …, aa, each once, in the order in which they are first needed."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        n, letters = self.texts.index(text) + 1, ""
        while n:
            n, rest = divmod(n - 1, 26)
            letters = chr(97 + rest) + letters
        return letters

    def as_rows(self) -> list[dict[str, str]]:
        return [{"mark": self.mark(text), "text": text} for text in self.texts]


def tables_beside(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """All published tables, JSON-ready: rows are their columns (benchmarks), beside each value ours.

    Ours are the models of the table's own chat template, and those whose template is not known (a server's).
    """
    result = []
    for published in load_published():
        own = [*published.settings["template"], None]
        usable = [e for e in evaluations if asked(e)["template"] in own and not e.variant.get("shuffle_images")]
        result += [_beside(published, table, usable) for table in published.tables]
    return result


def in_tables() -> set[str]:
    """Lower-case names of the benchmarks that the shipped tables show."""
    columns = [c for published in load_published() for table in published.tables for c in table.columns]
    return {column.benchmark.lower() for column in columns if column.benchmark}


def _beside(published: Published, table: Table, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    ours = _columns_of(table, evaluations)
    checks = averages(table)
    wrong = {(a["system"], a["column"]): a for a in checks if not a["adds_up"]}
    notes = Footnotes()
    rows: list[dict[str, Any]] = []
    for number, column in enumerate(table.columns):
        cells = []
        for system in table.systems:
            fault = wrong.get((system.name, column.name))
            mark = [notes.mark(_sentence(fault))] if fault else []
            recomputed = round(fault["mean"], 1) if fault else None
            cells.append({"value": system.values[number], "recomputed": recomputed, "marks": mark})
        known = {row["column"]: row["ours"] for row in rows}
        mine = [
            _cell(column, group, [known[name][i] for name in column.mean_of if name in known], notes)
            for i, group in enumerate(ours.values())
        ]
        about = {"benchmark": column.benchmark, "metric": column.metric, "mean_of": column.mean_of}
        rows.append({"column": column.name, **about, "published": cells, "ours": mine})
    return {
        "system": published.title,
        "title": table.title,
        "systems": [{"name": s.name, "about": s.about, "source": s.source} for s in table.systems],
        "ours": [{"model": model, "variant": variant} for model, variant in ours],
        "rows": rows,
        "averages": checks,
        "footnotes": notes.as_rows(),
        "notes": table.notes,
    }


def _columns_of(table: Table, evaluations: Iterable[Evaluation]) -> dict[tuple[str, str], dict[str, Evaluation]]:
    """(model, variant) -> benchmark in lower case -> evaluation; a second run of the same gets a column of its own."""
    wanted = {column.benchmark.lower() for column in table.columns if column.benchmark}
    found: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for e in evaluations:
        benchmark = e.summary["benchmark"].lower()
        if benchmark not in wanted:
            continue
        key, again = (e.summary["model"], e.label), 1
        while benchmark in found.get(key, {}):
            again += 1
            key = (e.summary["model"], f"{e.label}, run {again}")
        found.setdefault(key, {})[benchmark] = e
    return found


def _cell(
    column: Column, group: dict[str, Evaluation], terms: Sequence[dict[str, Any] | None], notes: Footnotes
) -> dict[str, Any] | None:
    """Our number for a column with its marks; the mean of `terms` where the column has no metric of ours."""
    if column.benchmark is None:
        measured = [term for term in terms if term and term["value"] is not None]
        if not column.mean_of or len(measured) < len(column.mean_of):
            return None
        marks = sorted({mark for term in measured for mark in term["marks"]}, key=lambda m: (len(m), m))
        counts = {key: sum(term[key] for term in measured) for key in ("scored", "total")}
        value = fmean(term["value"] for term in measured)
        return {"value": value, "low": None, "high": None, **counts, "marks": marks}
    e = group.get(column.benchmark.lower())
    metric = next((m for m in e.summary["metrics"] if m["name"] == column.metric), None) if e else None
    if e is None or metric is None:
        return None
    texts = [*incomparable(e), *([metric["note"]] if metric["note"] else [])]
    return {**interval_of(metric), "marks": [notes.mark(text) for text in texts]}


def _sentence(fault: dict[str, Any]) -> str:
    why = "rounded columns could just explain it" if fault["rounding"] else "rounding cannot explain it"
    return (
        f"Printed {fault['printed']}, but the mean of the {len(fault['terms'])} printed columns "
        f"is {fault['mean']:.2f}: {fault['mean']:.1f}; {why}."
    )
