"""Scorers and aggregates by name, collected from the modules of this folder: one file per family of benchmarks.

    SCORERS["anls"]("a cat", ["cat", "a cat"])                      # as the published scorer: 1.0
    SCORERS["anls"]("", [""], compat="fixed")                       # the faults that its docstring names corrected: 0.0

A new file that defines `SCORERS` (name -> `Scorer`) or `AGGREGATES` (name -> function) needs no other edit.
"""

from vlm.eval.registry import collect
from vlm.eval.scorers.scorer import Aggregate, Scorer

__all__ = ["AGGREGATES", "SCORERS", "Scorer"]

SCORERS: dict[str, Scorer] = collect(__name__, "SCORERS")
"""Name -> scorer. Benchmark tables can name those with `inputs`; the others are steps and scripts to compare."""

AGGREGATES: dict[str, Aggregate] = collect(__name__, "AGGREGATES")
"""Name in a benchmark table -> function(benchmark, rows, mode) -> metrics, the headline first."""
