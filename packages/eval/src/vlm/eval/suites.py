"""Suites: names for groups of benchmarks, what one published system is measured on (`suites.yaml`).

benchmarks_of(["v2pe-general", "pope"])   # ["ChartQA", "DocVQA", …, "SEED-I"]
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vlm.core.config import Strict, load_yaml, parse
from vlm.eval import benchmark

ALL = "all"


class Suite(Strict):
    """A group of benchmarks, by their names."""

    title: str
    benchmarks: list[str]


def suites() -> dict[str, Suite]:
    """Return the suites by their names."""
    path = Path(str(files("vlm.eval") / "suites.yaml"))
    return {name: parse(entry, Suite, where=f"{path.name}: {name}") for name, entry in load_yaml(path).items()}


def names_suite(names: Sequence[str]) -> bool:
    """Return whether one of the names is a suite or `all`, in any case."""
    known = {ALL, *suites()}
    return any(name.lower() in known for name in names)


def benchmarks_of(names: Sequence[str], home: Path | None = None) -> list[str]:
    """Return the benchmarks that names mean, each once, in the order of the names: suites and `all` in full.

    Args:
        names: Benchmarks, suites or `all`, in any case. Unknown ones stay as they are.
        home: The user's folder, whose `benchmarks/` may hold more tables.
    """
    known = suites()
    found: dict[str, str] = {}
    for name in names:
        suite = known.get(name.lower())
        meant = list(benchmark.tables(home)) if name.lower() == ALL else suite.benchmarks if suite else [name]
        for bench in meant:
            found.setdefault(bench if "." in bench else bench.lower(), bench)  # files differ by case
    return list(found.values())
