"""Numbers from the vega-datasets tables: shares and comparisons for bars and pies, series for lines."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SECTORS = ("construction", "manufacturing", "retail_trade", "government", "information")


@dataclass(frozen=True)
class Numbers:
    """A title, labels and values. `share`: the values are parts of one whole, so that a pie makes sense."""

    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    share: bool = False


def comparisons(folder: Path) -> list[Numbers]:
    """Return tables of 2 to 6 labeled, positive values, for bars and (where `share`) pies."""
    found: list[Numbers] = []

    def add(title: str, groups: dict[str, list[float]], fold: Callable[[list[float]], float], share: bool) -> None:
        values = {label: fold(group) for label, group in groups.items() if group}
        values = {label: value for label, value in values.items() if value > 0}
        if 2 <= len(values) <= 6:
            found.append(Numbers(title, tuple(values), tuple(values.values()), share))

    weather = _rows(folder / "seattle-weather.csv")
    for year, rows in _by(weather, lambda r: r["date"][:4]):
        add(f"Days of weather in Seattle {year}", _groups(rows, "weather", lambda r: 1.0), sum, True)
        for start in (0, 6):
            half = [r for r in rows if start < int(r["date"][5:7]) <= start + 6]
            months = _groups(
                [{**r, "month": MONTHS[int(r["date"][5:7]) - 1]} for r in half], "month", _number("temp_max")
            )
            add(f"Warmth in Seattle {year}", months, _mean, False)
    for year, rows in _by(_rows(folder / "cars.json"), lambda r: r["Year"][:4]):
        add(f"Cars of {year}", _groups(rows, "Origin", lambda r: 1.0), sum, True)
        for measure, title in (("Miles_per_Gallon", "Miles per gallon"), ("Horsepower", "Horsepower")):
            known = [r for r in rows if r[measure] is not None]
            add(f"{title}, cars of {year}", _groups(known, "Origin", _number(measure)), _mean, False)
    for variety, rows in _by(_rows(folder / "barley.json"), lambda r: r["variety"]):
        for year, part in _by(rows, lambda r: str(r["year"])):
            add(f"Barley: {variety} {year}", _groups(part, "site", _number("yield")), _mean, False)
    for year, rows in _by(_rows(folder / "iowa-electricity.csv"), lambda r: r["year"][:4]):
        add(f"Electricity in Iowa {year}", _groups(rows, "source", _number("net_generation")), sum, True)
    for year, rows in _by(_rows(folder / "us-employment.csv"), lambda r: r["month"][:4]):
        sectors = {name.split("_")[0]: [float(r[name]) for r in rows] for name in SECTORS}
        add(f"Jobs by sector {year}", sectors, _mean, True)
    for month, rows in _by(_rows(folder / "crimea.json"), lambda r: r["date"][:7]):
        causes = {name: [float(rows[0][name])] for name in ("wounds", "disease", "other")}
        add(f"Causes of death {month}", causes, sum, True)
    for measure in ("sepalLength", "sepalWidth", "petalLength", "petalWidth"):
        add(f"Iris: {measure}", _groups(_rows(folder / "iris.json"), "species", _number(measure)), _mean, False)
    for year, rows in _by(_rows(folder / "stocks.csv"), lambda r: r["date"][-4:]):
        add(f"Share prices {year}", _groups(rows, "symbol", _number("price")), _mean, False)
    return found


def series(folder: Path) -> list[Numbers]:
    """Return tables of at least 6 values in time order, for lines."""
    found: list[Numbers] = []

    def add(title: str, rows: list[Row], label: Callable[[Row], str], value: str) -> None:
        if len(rows) >= 6:
            found.append(Numbers(title, tuple(map(label, rows)), tuple(float(r[value]) for r in rows)))

    for symbol, rows in _by(_rows(folder / "stocks.csv"), lambda r: r["symbol"]):
        for year, part in _by(rows, lambda r: r["date"][-4:]):
            add(f"{symbol} share {year}", part, lambda r: r["date"][:3], "price")
    for source, rows in _by(_rows(folder / "iowa-electricity.csv"), lambda r: r["source"]):
        add(f"{source} in Iowa", rows, lambda r: r["year"][:4], "net_generation")
    for name in SECTORS:
        for start in ("2006", "2009", "2012"):
            part = [r for r in _rows(folder / "us-employment.csv") if start <= r["month"][:4] < str(int(start) + 3)]
            add(f"Jobs: {name.replace('_', ' ')} from {start}", part, lambda r: r["month"][:7], name)
    for name in ("miles", "gas"):
        add(f"Driving: {name}", _rows(folder / "driving.json"), lambda r: str(r["year"]), name)
    for name in ("wheat", "wages"):
        rows = [r for r in _rows(folder / "wheat.json") if r.get(name) is not None]
        add(f"England: {name}", rows, lambda r: r["year"], name)
    for name in ("open", "high", "low", "close"):
        add(f"Market: {name}", _rows(folder / "ohlc.json"), lambda r: r["date"][5:], name)
    for month, rows in _by(_rows(folder / "seattle-weather.csv"), lambda r: r["date"][:7]):
        add(f"Warmth in Seattle {month}", rows, lambda r: r["date"][8:], "temp_max")
    return found


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as f:
        return json.load(f) if path.suffix == ".json" else list(csv.DictReader(f))


def _by(rows: Iterable[Row], key: Callable[[Row], str]) -> Iterator[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return iter(groups.items())


def _groups(rows: Iterable[Row], label: str, value: Callable[[Row], float]) -> dict[str, list[float]]:
    return {name: [value(r) for r in part] for name, part in _by(rows, lambda r: str(r[label]))}


def _number(name: str) -> Callable[[Row], float]:
    return lambda row: float(row[name])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
