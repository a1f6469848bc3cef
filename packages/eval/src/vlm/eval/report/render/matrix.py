"""The overview of a report: one row for each benchmark, one column for each model and its settings."""

from typing import TypedDict

from vlm.eval.report.data import Report


class MatrixColumn(TypedDict):
    """A model with its settings; a repeated run has a column to itself."""

    model: str
    variant: str


class MatrixCell(TypedDict):
    """A headline metric. `best`: no other of its row is higher, and there are several."""

    value: float | None
    caveats: list[str]
    best: bool


class MatrixRow(TypedDict):
    """A benchmark, its headline metric, and a cell for each column; None where it was not run."""

    title: str
    metric: str
    cells: list[MatrixCell | None]


class Matrix(TypedDict):
    """All models against all benchmarks."""

    columns: list[MatrixColumn]
    rows: list[MatrixRow]


def matrix(report: Report) -> Matrix:
    """Return the headline metrics of all evaluations but blind controls, as a table of two sides."""
    found: dict[str, dict[tuple[str, str], MatrixCell]] = {}
    metrics: dict[str, str] = {}
    for row in report.accuracy:
        if not row["metrics"] or any("exchanged" in caveat for caveat in row["caveats"]):
            continue
        metric, cells = row["metrics"][0], found.setdefault(row["title"], {})
        metrics.setdefault(row["title"], metric["name"])
        key, again = (row["model"], row["variant"]), 1
        while key in cells:
            again += 1
            key = (row["model"], f"{row['variant']}, run {again}")
        cells[key] = {"value": metric["value"], "caveats": row["caveats"], "best": False}
    columns = sorted({key for cells in found.values() for key in cells}, key=lambda key: (key[0], _natural(key[1])))
    for cells in found.values():
        known = [value for cell in cells.values() if (value := cell["value"]) is not None]
        for cell in cells.values():
            cell["best"] = len(known) > 1 and cell["value"] == max(known)
    return {
        "columns": [{"model": model, "variant": variant} for model, variant in columns],
        "rows": [
            {"title": title, "metric": metrics[title], "cells": [cells.get(key) for key in columns]}
            for title, cells in found.items()
        ],
    }


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key by which `stride 4` stands before `stride 16`."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in text.replace(",", " ").split()]


def title_of(report: Report) -> str:
    """Return what the report is about, in a few words.

    >>> title_of(report)     # doctest: +SKIP
    'V2PE and InternVL2-2B on 9 benchmarks'
    """
    models, benchmarks, stages = report.models, report.benchmarks, len(report.training)
    if not models:
        names = [row["stage"] for row in report.training]
        return names[0] if stages == 1 else f"{stages} training stages"
    who = " and ".join(models) if len(models) <= 2 else f"{len(models)} models"
    if not benchmarks:
        return who
    return f"{who} on {benchmarks[0] if len(benchmarks) == 1 else f'{len(benchmarks)} benchmarks'}"
