"""A few records as one self-contained page: what the model will see, before training on it."""

import base64
from html import escape
from io import BytesIO
from pathlib import Path

from vlm.core.errors import DataError
from vlm.core.home import write_atomic
from vlm.core.media import load_image
from vlm.core.records import iter_jsonl, read_record

LONGEST_SIDE = 256
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
body{color:#222;background:#fff}section{border-top:1px solid #bbb;padding:1rem 0}
img{max-width:256px;vertical-align:middle;margin:2px;border:1px solid #ccc}
.user{background:#eef3fa}.assistant{background:#eef7ee}.system{background:#f4f0e4}
p{white-space:pre-wrap;padding:.4rem .6rem;margin:.3rem 0;border-radius:4px}h2{font-size:1rem}"""


def preview(path: Path, out: Path, *, root: Path | None = None, count: int = 8) -> int:
    """Write a page with `count` records spread evenly over the file `path`; returns how many it shows.

    Args:
        root: folder that image paths are relative to; by default that of the file.

    Raises:
        DataError: no record, or a malformed one. MediaError: an image cannot be read.
    """
    root = root or path.parent
    records = list(iter_jsonl(path))
    if not records:
        raise DataError(f"{path} holds no record")
    step = max(1, len(records) // count)
    chosen = records[::step][:count]
    body = []
    for line, record in chosen:
        sample = read_record(record, root=root, where=f"{path}:{line}")
        turns = []
        for message in sample.messages:
            parts = "".join(escape(p["text"]) if p["type"] == "text" else _medium(p) for p in message["content"])
            turns.append(f'<p class="{message["role"]}"><b>{message["role"]}</b> {parts}</p>')
        body.append(f"<section><h2>line {line}: {escape(sample.id)}</h2>{''.join(turns)}</section>")
    title = escape(f"{path.name}: {len(chosen)} of {len(records)} records")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    write_atomic(
        out, f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{title}</h1>{"".join(body)}</body></html>'
    )
    return len(chosen)


def _medium(part: dict) -> str:
    name = escape(Path(part["path"]).name)
    if part["type"] == "video":
        return f"[video {name}]"
    picture = load_image(part["path"])
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{name}" title="{name}" src="data:image/png;base64,{data}">'
