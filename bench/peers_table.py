"""Write the table of docs/performance.md from the JSON files of this folder: `python bench/peers_table.py`.

`make bench-peers` ends with it, and a test compares the page with the files.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

BENCH = Path(__file__).parent
PAGE = BENCH.parent / "docs" / "performance.md"
START, END = "<!-- table of bench/peers_table.py -->\n\n", "\n<!-- end -->"


class Row(NamedTuple):
    """A line of the table: the work, the peer, where it was measured, and the greatest ratio that is wanted."""

    work: str
    peer: str
    file: str
    where: dict[str, Any]
    target: float


TORCH = "bfloat16 in torch's layers"
MID = "InternVL2-2B shape, a quarter of its layers, bfloat16"
ROWS = (
    Row(f"encode a tile ({MID})", "transformers", "peer_forward", {"work": "encode a tile"}, 0.95),
    Row("first token, 298 tokens, 1 tile", "transformers", "peer_forward", {"tokens": 298}, 0.85),
    Row("first token, 2,264 tokens, 8 tiles", "transformers", "peer_forward", {"tokens": 2264}, 0.85),
    Row("12 new tokens, one row", "transformers", "peer_forward", {"work": "decode, one row"}, 0.8),
    Row(
        "new tokens, all of the language model of InternVL2-2B", TORCH, "low_bit", {"weights": "bfloat16, packed"}, 0.8
    ),
    Row("the same, `--quantize int8`", TORCH, "low_bit", {"weights": "int8"}, 0.55),
    Row("the same, `--quantize int4`", TORCH, "low_bit", {"weights": "int4"}, 0.35),
    Row("evaluation, batches of 8", "loop over transformers", "peer_answers", {"batch_size": 8}, 0.5),
    Row("evaluation, one by one", "loop over transformers", "peer_answers", {"batch_size": 1}, 0.5),
    Row("evaluation, whole process", "lmms-eval", "peer_lmms_eval", {}, 0.25),
    Row("training", "HF Trainer", "peer_trainers", {"peer": "HF Trainer"}, 0.5),
    Row("training", "TRL SFTTrainer", "peer_trainers", {"peer": "TRL SFTTrainer"}, 0.5),
    Row("unpack 20,000 files, hashed", "tarfile and hashlib", "unpack", {"files": 20000}, 1.2),
    Row("download with checksum", "curl and sha256sum", "download", {}, 0.7),
)


def measured(row: Row) -> dict[str, Any] | None:
    """The row of the JSON file; None where the script has not run."""
    path = BENCH / f"{row.file}.json"
    if not path.exists():
        return None
    found = [r for r in json.loads(path.read_text())["rows"] if all(r.get(k) == v for k, v in row.where.items())]
    return found[0] if found else None


def table() -> str:
    """The table in Markdown; ratios are those of the least CPU times."""
    head = ("work", "peer", "ours", "peer", "ratio", "target", "reached", "file")
    lines = [head, ("---", "---", "---:", "---:", "---:", "---:", "---", "---")]
    for row in ROWS:
        found, file = measured(row), f"`bench/{row.file}.json`"
        target = f"≤ {row.target:g}"
        if found is None:
            lines.append((row.work, row.peer, "", "", "", target, "not run", file))
            continue
        ours, peer = (f"{found[f'{side}_cpu_min_s']:.3g} s" for side in ("ours", "peer"))
        ratio = found["cpu_ratio"]
        reached = "yes" if ratio <= row.target else "no"
        lines.append((row.work, row.peer, ours, peer, f"{ratio:.3f}", target, reached, file))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(text: str) -> str:
    """The page with the table as the files have it."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + table() + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
