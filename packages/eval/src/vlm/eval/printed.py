"""The published tables of the four systems, as printed: `vlm/eval/published/*.yaml`.

v2pe, internvl, convllava, internvl2_5 = load_published()
[column.name for column in v2pe.tables[0].columns]
scores_of("ChartQA")                # every published number of a benchmark
"""

from functools import cache
from typing import Any, Self

from pydantic import Field, model_validator

from vlm.core.config import Strict, load_yaml, package_tables, parse

ORDER = ("v2pe", "internvl_chat_v1_2", "convllava", "internvl2_5")
"""The systems in the order of the report."""


class PublishedColumn(Strict):
    """A column of a published table. `benchmark` and `metric` name ours; `mean_of` are the columns it averages."""

    name: str
    benchmark: str | None = None
    metric: str | None = None
    mean_of: list[str] = Field(default_factory=list)


class PublishedScore(Strict):
    """One published number (0 to 100; MME: points).

    `metric` is the name of our metric that it is compared with, `variant` its variant when there are several.
    """

    system: str
    metric: str
    variant: str | None = None
    value: float
    source: str


class PublishedSystem(Strict):
    """A row: `values` in the order of the columns, None where nothing was published; so are size and image size."""

    name: str
    parameters: str = ""
    image_size: str = ""
    about: str = ""
    source: str
    values: list[int | float | None]

    @property
    def head(self) -> str:
        """Return what stands below the name: number of parameters, image size, and more."""
        return ", ".join(filter(None, [self.parameters, self.image_size, self.about]))


class PublishedTable(Strict):
    """One table as printed."""

    title: str
    columns: list[PublishedColumn]
    systems: list[PublishedSystem]
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

    @property
    def benchmarks(self) -> set[str]:
        """Lower-case names of the benchmarks that the table shows."""
        return {column.benchmark.lower() for column in self.columns if column.benchmark}


class PublishedResults(Strict):
    """The tables of one system. `settings`: how it was measured (key of `settings_of` -> values that are the same)."""

    title: str
    family: str
    settings: dict[str, list[Any]]
    settings_source: str
    tables: list[PublishedTable]

    @property
    def benchmarks(self) -> set[str]:
        """Lower-case names of the benchmarks that the tables show."""
        return {name for table in self.tables for name in table.benchmarks}

    @property
    def templates(self) -> list[str | None]:
        """Chat templates of models that belong beside these tables; None: a template that is not known (a server's)."""
        return [*self.settings["template"], None]


@cache
def load_published() -> list[PublishedResults]:
    """Read the shipped tables, once.

    Raises:
        ConfigError: Names every fault of a file at once.
    """
    paths = package_tables("vlm.eval", "published")
    return [parse(load_yaml(paths[stem]), PublishedResults, where=str(paths[stem])) for stem in ORDER]


def scores_of(benchmark: str) -> list[PublishedScore]:
    """Return the published numbers of a benchmark, by its full name, in the order of the tables."""
    return [
        PublishedScore(system=system.name, metric=column.metric, value=value, source=system.source)
        for published in load_published()
        for table in published.tables
        for system in table.systems
        for column, value in zip(table.columns, system.values, strict=True)
        if column.benchmark == benchmark and column.metric and value is not None
    ]
