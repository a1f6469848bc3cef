"""The result of a check: totals, shares, a histogram, the longest samples, duplicates.

What grows with the records lies in temporary files: their measures, and the ids and digests that tell duplicates.
"""

import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm.core.check.check import COLUMNS, ERRORS, CheckedFile, CheckedLines, SampleFault
from vlm.core.sample.index import LineIndex
from vlm.core.sample.lines import parse_line
from vlm.core.sample.measure import Rules
from vlm.core.sample.records import record_id
from vlm.core.spill import CODEC, Seen


@dataclass
class CheckReport:
    """Everything that a check found. The caller sets `seconds`.

    `rows` has one array for each file and `lines` the line numbers of its records, both mapped from temporary files;
    `unread` counts the keys that nothing reads.
    """

    rules: Rules
    sources: Sequence[CheckedFile]
    rows: dict[str, np.ndarray]
    lines: dict[str, np.ndarray]
    unread: dict[str, Counter[str]]
    faults: list[SampleFault]
    opened: int
    seconds: float = 0.0

    @property
    def errors(self) -> list[SampleFault]:
        """Faults of samples that cannot be used."""
        return [fault for fault in self.faults if fault.kind in ERRORS]

    @property
    def losses(self) -> Counter[str]:
        """Samples that cannot be used, each once, under its first fault: with `usable` they are all records."""
        first = {(fault.source, fault.line): fault.kind for fault in reversed(self.errors)}
        return Counter(first.values())

    def as_dict(self, samples: bool = True) -> dict[str, Any]:
        """Return the report for JSON; `samples=False` leaves out the row of each sample."""
        names = [*COLUMNS, *(f"positions_{'arange' if s is None else f'{s:g}'}" for s in self.rules.strides)]

        def column(name: str) -> np.ndarray:
            return np.concatenate([rows[:, names.index(name)] for rows in self.rows.values()])

        tokens = {s.name: int(self.rows[s.name][:, names.index("tokens_kept")].sum()) for s in self.sources}
        count = {name: len(numbers) for name, numbers in self.lines.items()}
        epoch = {s.name: (count[s.name] * s.repeat, tokens[s.name] * s.repeat) for s in self.sources}
        totals = [max(1.0, sum(values)) for values in zip(*epoch.values(), strict=True)]
        losses = self.losses
        result: dict[str, Any] = {
            "lines": sum(count.values()),
            "usable": sum(count.values()) - losses.total(),
            "losses": dict(losses.most_common()),
            "max_length": self.rules.max_length,
            "faults": dict(Counter(fault.kind for fault in self.faults).most_common()),
            "unread": {name: dict(keys.most_common()) for name, keys in self.unread.items() if keys},
            "sources": [
                {
                    "name": s.name,
                    "file": str(s.file),
                    "lines": count[s.name],
                    "repeat": s.repeat,
                    "share_of_samples": epoch[s.name][0] / totals[0],
                    "share_of_tokens": epoch[s.name][1] / totals[1],
                }
                for s in self.sources
            ],
            "measures": {name: measures(column(name)) for name in names[1:]},
            "beyond_positions": self._beyond(names, column),
            "histogram": histogram(column("tokens")),
            "worst": [self._sample(names, i) for i in np.argsort(-column("tokens"), kind="stable")[:10]],
            "problems": [fault._asdict() for fault in self.faults],
        }
        if samples:
            result |= {"columns": names, "rows": {name: rows.tolist() for name, rows in self.rows.items()}}
        return result

    def _beyond(self, names: list[str], column: Callable[[str], np.ndarray]) -> dict[str, int]:
        """Count the samples with positions that the model was not trained for, by the way of counting positions."""
        limit = self.rules.max_positions
        counts = {n: int((column(n) > limit).sum()) for n in names if limit and n.startswith("positions_")}
        return {name: n for name, n in counts.items() if n}

    def _sample(self, names: list[str], i: int) -> dict[str, Any]:
        """Return the sample in row `i`, counted over all files."""
        for source in self.sources:
            rows = self.rows[source.name]
            if i < len(rows):
                at = bisect_left(self.lines[source.name], int(rows[i, 0]))
                where = f"{source.file.name}:{int(rows[i, 0])}"
                id = record_id(parse_line(LineIndex(source.file)[at], where)) or where
                return {"source": source.name, "id": id} | {
                    name: int(value) for name, value in zip(names, rows[i], strict=True)
                }
            i -= len(rows)
        raise IndexError(i)


def measures(values: np.ndarray) -> dict[str, float]:
    """Return sum, mean, percentiles and maximum of some values; zeros when there are none."""
    if not len(values):
        return dict.fromkeys(("sum", "mean", "p50", "p90", "p99", "max"), 0)
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {
        "sum": int(values.sum()),
        "mean": float(values.mean()),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": int(values.max()),
    }


def histogram(tokens: np.ndarray, bins: int = 16) -> dict[str, list[int]]:
    """Count samples between edges that grow by a constant factor."""
    low, high = (int(tokens.min()), int(tokens.max()) + 1) if len(tokens) else (1, 2)
    edges = np.unique(np.geomspace(max(1, low), high, bins + 1).round().astype(np.int64))
    edges[-1] = high
    return {"edges": edges.tolist(), "samples": np.histogram(tokens, edges)[0].tolist()}


class _Spool:
    """Rows of int64 in a temporary file."""

    def __init__(self, stack: ExitStack, *shape: int):
        self.shape, self.file = shape, stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115

    def add(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, np.int64).tobytes())

    def mapped(self) -> np.ndarray:
        self.file.flush()
        if not self.file.tell():
            return np.empty((0, *self.shape), np.int64)
        return np.memmap(self.file, np.int64, "r").reshape(-1, *self.shape)


def collect(
    rules: Rules, sources: Sequence[CheckedFile], results: Iterable[tuple[CheckedFile, CheckedLines]]
) -> CheckReport:
    """Collect what `check` yields into a report, with duplicates: ids within a file, contents within all files."""
    with ExitStack() as stack:
        rows = {source.name: _Spool(stack, len(COLUMNS) + len(rules.strides)) for source in sources}
        lines = {source.name: _Spool(stack) for source in sources}
        unread: dict[str, Counter[str]] = {source.name: Counter() for source in sources}
        faults: list[SampleFault] = []
        seen = stack.enter_context(Seen())
        opened = 0
        for source, found in results:
            faults += found.faults
            for line, id, digest in zip(found.numbers, found.ids, found.digests, strict=True):
                where = f"{source.name}:{line}"
                own = f"{source.name}\0{id}".encode(*CODEC)
                for kind, key in (("same id", own), ("same content", digest)):
                    if first := seen.before(kind, key, where):
                        faults.append(SampleFault(source.name, line, id, kind, f"as {first}"))
            rows[source.name].add(found.rows)
            lines[source.name].add(np.array(found.numbers, np.int64))
            unread[source.name] += found.unread
            opened += found.opened
        mapped = [{name: spool.mapped() for name, spool in spools.items()} for spools in (rows, lines)]
        return CheckReport(rules, sources, mapped[0], mapped[1], unread, faults, opened)
