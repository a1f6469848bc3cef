"""Memory of `vlm eval score` at several numbers of predictions, each in a process of its own.

The benchmark is a file of made-up questions, the predictions a file of id and reply. With `anls` every score is a
fraction, so that intervals are bootstrapped. `peak_bytes` is of the whole process.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import report

SIZES = (("exact", 100_000), ("exact", 1_000_000), ("anls", 100_000))


def make(folder: Path, items: int) -> None:
    """Write questions.jsonl and predictions.jsonl with as many rows."""
    with (folder / "questions.jsonl").open("w") as asked, (folder / "predictions.jsonl").open("w") as said:
        for i in range(items):
            row = {"id": f"sample-{i:09d}", "question": f"How many are in picture {i}?", "answer": f"{i % 97} cats"}
            asked.write(json.dumps(row) + "\n")
            said.write(json.dumps({"id": row["id"], "prediction": f"{i % 89} cats"}) + "\n")


def one(scorer: str, folder: Path) -> None:
    """Score the predictions in a folder and print what that took."""
    from vlm.eval.own import table_of_file
    from vlm.eval.saved.score import score_predictions

    table = table_of_file(folder / "questions.jsonl", scorer=scorer)
    began = time.process_time()
    summary = score_predictions(table, [folder / "predictions.jsonl"], folder / "out", data=folder, name="bench")
    cpu = time.process_time() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"n": summary["data"]["items"], "cpu_s": cpu, "peak_bytes": int(peak.split()[1]) * 1024}))


def peak_of(scorer: str, items: int) -> dict[str, float]:
    """Return predictions, seconds of CPU and peak bytes of a process that scores as many."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), items)
        line = [sys.executable, __file__, scorer, folder]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    assert found["n"] == items
    return found


def main() -> None:
    rows = []
    for scorer, items in SIZES:
        found = peak_of(scorer, items)
        rows.append({"scorer": scorer, "predictions": items} | {key: found[key] for key in ("cpu_s", "peak_bytes")})
    few, many = rows[:2]
    many["peak_bytes_a_prediction"] = (many["peak_bytes"] - few["peak_bytes"]) / (SIZES[1][1] - SIZES[0][1])
    report("score_memory", rows)


if __name__ == "__main__":
    one(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 else main()
