"""Files for evaluation servers: every reply in the format that the server of a benchmark takes.

A question without an answer (unanswered, oom, error, refused) has an empty reply: servers want every id, and nothing
is guessed.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from vlm.core.errors import UnknownName
from vlm.core.home import write_atomic
from vlm.eval.benchmark import Benchmark
from vlm.eval.measures.rows import ResultRow
from vlm.eval.scorers.choice import option_post_process

Writer = Callable[[Benchmark, Sequence[ResultRow]], str | bytes]


def write_submission(benchmark: Benchmark, rows: Sequence[ResultRow], folder: Path) -> Path | None:
    """Write the submission file of the rows of results.jsonl to `folder`; return None when the table has none.

    Raises:
        UnknownName: The table names no known format.
    """
    about = benchmark.submission
    if about is None:
        return None
    if about.format not in FORMATS:
        raise UnknownName("submission format", about.format, FORMATS)
    path = folder / about.file
    write_atomic(path, FORMATS[about.format](benchmark, rows))
    return path


def reply_of(row: ResultRow) -> str:
    """Return the reply as the published evaluators submit it: a letter where it names one of the lettered options."""
    reply, options = (row["completion"] or "").strip(), row["meta"].get("options")
    return option_post_process(reply, options) if reply and options else reply


def _rrc(benchmark: Benchmark, rows: Sequence[ResultRow]) -> str:
    """Format DocVQA and InfoVQA: a list of question ids (of the type they have in the questions) and answers."""
    entries = [{"questionId": row["meta"]["question_id"], "answer": reply_of(row)} for row in rows]
    return json.dumps(entries, ensure_ascii=False)


def _vizwiz(benchmark: Benchmark, rows: Sequence[ResultRow]) -> str:
    """Format VizWiz: a list of image file names and answers."""
    return json.dumps([{"image": row["meta"]["cluster"], "answer": reply_of(row)} for row in rows], ensure_ascii=False)


def _mmmu(benchmark: Benchmark, rows: Sequence[ResultRow]) -> str:
    """Format MMMU: question id -> reply."""
    return json.dumps({row["id"]: reply_of(row) for row in rows}, indent=4, ensure_ascii=False)


def _mmbench(benchmark: Benchmark, rows: Sequence[ResultRow]) -> bytes:
    """Format MMBench and CCBench: the table (XLSX) with the column `prediction` where the server expects it."""
    import xlsxwriter

    at = benchmark.options["prediction_at"]
    lines: list[list[Any]] = []
    for row in rows:
        cells = row["meta"]["row"]
        if not lines:
            lines.append([*list(cells)[:at], "prediction", *list(cells)[at:]])
        lines.append([*list(cells.values())[:at], reply_of(row) or None, *list(cells.values())[at:]])
    content = BytesIO()
    with xlsxwriter.Workbook(content, {"in_memory": True}) as book:
        book.set_properties({"created": datetime(2000, 1, 1)})  # the same replies give the same bytes
        sheet = book.add_worksheet("Sheet1")
        number = lines[0].index("index")
        for y, line in enumerate(lines):
            for x, cell in enumerate(line):
                if y and x == number:
                    sheet.write_number(y, x, int(cell))
                elif cell is not None:
                    sheet.write_string(y, x, cell)
    return content.getvalue()


FORMATS: dict[str, Writer] = {"rrc": _rrc, "vizwiz": _vizwiz, "mmmu": _mmmu, "mmbench": _mmbench}
"""Format of a table's `submission` -> function(benchmark, rows of results.jsonl in data order) -> content."""
