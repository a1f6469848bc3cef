"""Rows as other programs write them, for tests of the readers."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

COLORS = ("red", "green", "blue")
ASK = "What color is it?"


def png(color: str) -> bytes:
    """A picture of one color."""
    file = io.BytesIO()
    Image.new("RGB", (24, 16), color).save(file, "PNG")
    return file.getvalue()


def llava(color: str, image: Any = None) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{ASK}"}, {"from": "gpt", "value": color}]
    return {"id": color, "image": image or f"images/{color}.png", "conversations": turns}


def columns(color: str) -> dict[str, Any]:
    return {"image": f"images/{color}.png", "question": ASK, "answer": color}


def data_url(color: str) -> str:
    return "data:image/png;base64," + base64.b64encode(png(color)).decode()


def lines(rows: list[Any], **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def sheet(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def pictures() -> Any:
    """Rows as `datasets` writes an image column: bytes and a path beside each other."""
    rows = [{"image": {"bytes": png(c), "path": None}, "question": ASK, "answer": c} for c in COLORS]
    return pa.Table.from_pylist(rows)


def saved(folder: Path, table: Any) -> None:
    """Write a folder as `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    for number in (0, 1):
        name = f"data-0000{number}-of-00002.arrow"
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.slice(0, 2) if number == 0 else table.slice(2))
    names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_format_type": None}))
    (folder / "dataset_info.json").write_text("{}")


def turns(*said: tuple[Any, Any]) -> dict[str, Any]:
    """A record of these speakers and texts."""
    return {"conversations": [{"from": who, "value": value} for who, value in said]}
