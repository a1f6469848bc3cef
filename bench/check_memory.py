"""Memory of the report of `vlm data check` at two numbers of records, each in a process of its own.

The records are made up, 500 in a chunk as the check yields them, with an id, a digest and eleven measures each; nothing
is read, so that only what the report holds is seen. `peak_bytes` is of the whole process, pages of the temporary files
included, which the system takes back when it needs them; `own_bytes` leaves them out.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import report

from vlm.core.check.check import COLUMNS, CheckedFile, CheckedLines
from vlm.core.check.report import collect
from vlm.core.sample.measure import Rules
from vlm.core.sample.tiling import ImageRule

SIZES = (100_000, 1_100_000)
CHUNK = 500


def chunks(source: CheckedFile, records: int, columns: int) -> Iterator[tuple[CheckedFile, CheckedLines]]:
    rng = np.random.default_rng(0)
    for first in range(0, records, CHUNK):
        numbers = list(range(first + 1, first + CHUNK + 1))
        rows = np.column_stack([numbers, rng.integers(1, 4096, (CHUNK, columns - 1))])
        ids = [f"sample-{n:012d}" for n in numbers]
        yield source, CheckedLines(rows, numbers, ids=ids, digests=[rng.bytes(8) for _ in numbers])


def memory() -> dict[str, int]:
    """Return the peak of this process in bytes, and what it holds now without the pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }
    return {"peak_bytes": found["VmHWM"], "own_bytes": found["RssAnon"]}


def one(records: int) -> None:
    rules = Rules(Path(), "internlm2-chat", ImageRule(kind="tiles", size=448), 256, None, strides=(None, 64.0))  # type: ignore[arg-type]
    source = CheckedFile("bench", Path("bench.jsonl"), Path())
    began = time.process_time()
    found = collect(rules, [source], chunks(source, records, len(COLUMNS) + len(rules.strides)))
    held = memory()
    assert len(found.lines["bench"]) == records and not found.faults
    print(json.dumps({"records": records, "cpu_s": time.process_time() - began, **held}))


def main() -> None:
    rows = []
    for records in SIZES:
        done = subprocess.run([sys.executable, __file__, str(records)], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    few, many = rows
    for name in ("peak_bytes", "own_bytes"):
        many[f"{name}_a_record"] = (many[name] - few[name]) / (many["records"] - few["records"])
    report("check_memory", rows)


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) == 2 else main()
