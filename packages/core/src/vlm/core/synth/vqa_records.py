"""Records as the builders write them: the published `conversations` schema, one JSON object a line."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlm.core.home import write_atomic

NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def vqa_record(record_id: str, image: str, turns: Sequence[tuple[str, str]], **meta: Any) -> dict[str, Any]:
    """Return a record for one image with its (question, answer) turns; `<image>` and a newline open the first question.

    Args:
        record_id: The `id`.
        image: Path of the image, relative to the folder of the JSONL file.
        turns: (question, answer) pairs.
        **meta: More keys of the record.
    """
    conversations = []
    for i, (question, answer) in enumerate(turns):
        conversations.append({"from": "human", "value": f"<image>\n{question}" if i == 0 else question})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": record_id, "image": image, "conversations": conversations, **meta}


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one compact JSON object a line, atomically."""
    write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
