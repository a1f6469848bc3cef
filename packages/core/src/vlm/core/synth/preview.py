"""A few records as one self-contained page: what the model will see in training or evaluation."""

import base64
from html import escape
from io import BytesIO
from itertools import count as numbers
from pathlib import Path
from typing import Any

from vlm.core.errors import DataError
from vlm.core.home import write_atomic
from vlm.core.sample.media import load_image
from vlm.core.sample.records import Medium, iter_jsonl, read_record
from vlm.core.synth.long.mr_document import conversation

LONGEST_SIDE = 256
MANY = 24
"""With more images in a record they are shown smaller and as JPEG: a page of 64K tokens stays a few megabytes."""

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
body{color:#222;background:#fff}section{border-top:1px solid #bbb;padding:1rem 0}
img{max-width:256px;vertical-align:middle;margin:2px;border:1px solid #ccc}
.user{background:#eef3fa}.assistant{background:#eef7ee}.system{background:#f4f0e4}
p{white-space:pre-wrap;overflow-wrap:anywhere;padding:.4rem .6rem;margin:.3rem 0;border-radius:4px}h2{font-size:1rem}
nav{position:sticky;top:0;z-index:1;background:#fffd;padding:.5rem 0}button{font:inherit;margin-right:.5rem}
.bar{position:relative;height:.8rem;margin:.4rem 0 1rem;background:#ddd;border-radius:4px;display:none}
.bar a{position:absolute;top:-.2rem;width:.5rem;height:1.2rem;margin-left:-.25rem;background:#d2691e;border-radius:2px}
.show .bar{display:block}mark{background:none;color:inherit}.show mark{background:#ffd54a;outline:2px solid #d2691e}
.shot{position:relative;display:inline-block}.shot i{position:absolute;display:none;border:3px solid #d2691e}
.show .shot i{display:block}.show .shot.needle{outline:4px solid #ffd54a}:target,.at{box-shadow:0 0 0 6px #d2691e66}
.needle{scroll-margin-top:5rem}"""

SCRIPT = """const show=document.getElementById('show'),next=document.getElementById('next');let k=-1;
show.onclick=()=>{const on=document.body.classList.toggle('show');show.setAttribute('aria-pressed',on);
show.textContent=on?'Hide needles':'Show needles'};
next.onclick=()=>{const all=[...document.querySelectorAll('.needle')];if(!all.length)return;
all[k]?.classList.remove('at');k=(k+1)%all.length;all[k].classList.add('at');
if(!document.body.classList.contains('show'))show.click();all[k].scrollIntoView({block:'center'})};"""

NAVIGATION = (
    '<nav><button id="show" aria-pressed="false">Show needles</button><button id="next">Next needle</button></nav>'
)


def preview(path: Path, out: Path, *, root: Path | None = None, count: int = 8) -> int:
    """Write a page with `count` records spread evenly over a file, and return how many it shows.

    Both the published `conversations` schema and MM-NIAH's are read. Needles that a record names are marked when the
    reader asks for it: a bar with their depths, the sentence, or a frame around the place in the picture.

    Args:
        path: JSONL file of records.
        out: The HTML file to write.
        root: Folder that image paths are relative to; by default the nearest one that contains the first image.
        count: Records to show.

    Raises:
        DataError: The file has no record, or a malformed one.
        MediaError: An image cannot be read.
    """
    records = list(iter_jsonl(path))
    if not records:
        raise DataError(f"{path} has no records")
    step = max(1, len(records) // count)
    chosen = records[::step][:count]
    body, found = [], False
    for line, record in chosen:
        if "context" in record:
            record = conversation(record, str(record["id"]))
        section = _Section(line, record, path, root)
        body.append(section.html())
        found = found or bool(section.needles)
    title = escape(f"{path.name}: {len(chosen)} of {len(records)} records")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    inner = f"<h1>{title}</h1>{NAVIGATION if found else ''}{''.join(body)}"
    script = f"<script>{SCRIPT}</script>" if found else ""
    write_atomic(out, f'<!doctype html><html lang="en"><head>{head}</head><body>{inner}{script}</body></html>')
    return len(chosen)


class _Section:
    """One record of the page."""

    def __init__(self, line: int, record: dict[str, Any], path: Path, root: Path | None):
        self.line = line
        images = record.get("image") or []
        self.names = [images] if isinstance(images, str) else list(images)
        self.sample = read_record(record, root=root or _root(path, self.names), where=f"{path}:{line}")
        self.meta = record.get("meta") or record.get("metadata") or {}
        self.needles: list[str] = [str(needle) for needle in self.meta.get("needles") or []]
        self._waiting = set(self.needles)
        self._ids = numbers()
        self._images = iter(self.names)

    def html(self) -> str:
        """Return header, bar of depths, and turns as HTML."""
        turns = []
        for message in self.sample.messages:
            parts = "".join(
                self._text(p["text"]) if p["type"] == "text" else self._medium(p) for p in message["content"]
            )
            turns.append(f'<p class="{message["role"]}"><b>{message["role"]}</b> {parts}</p>')
        about = ""
        if "context_length" in self.meta:
            about = f": {self.meta['context_length']:,} tokens, {len(self.names)} images"
        head = f"<h2>line {self.line}: {escape(self.sample.id)}{about}</h2>"
        return f"<section>{head}{self._bar()}{''.join(turns)}</section>"

    def _bar(self) -> str:
        depths = self.meta.get("placed_depth") or []
        depths = depths if isinstance(depths, list) else [depths]
        if not self.needles or len(depths) != len(self.needles):
            return ""
        links = (
            f'<a href="#needle-{self.line}-{k}" style="left:{100 * depth:.1f}%" title="depth {depth:.2f}"></a>'
            for k, depth in enumerate(depths)
        )
        return f'<div class="bar">{"".join(links)}</div>'

    def _id(self) -> str:
        return f'id="needle-{self.line}-{next(self._ids)}"'

    def _text(self, text: str) -> str:
        places = sorted((text.index(needle), needle) for needle in self._waiting if needle in text)
        html, end = "", 0
        for start, needle in places:
            html += escape(text[end:start]) + f'<mark class="needle" {self._id()}>{escape(needle)}</mark>'
            end = start + len(needle)
            self._waiting.discard(needle)
        return html + escape(text[end:])

    def _medium(self, part: Medium) -> str:
        name = escape(Path(part["path"]).name)
        if part["type"] == "video":
            return f"[video {name}]"
        listed = next(self._images)
        picture = load_image(part["path"])
        size = picture.size
        many = len(self.names) > MANY
        longest = LONGEST_SIDE * 5 // 8 if many and listed not in self._waiting else LONGEST_SIDE
        picture.thumbnail((longest, longest))
        buffer = BytesIO()
        picture.save(buffer, "JPEG" if many else "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        kind = "jpeg" if many else "png"
        image = f'<img alt="{name}" title="{name}" src="data:image/{kind};base64,{data}">'
        if listed not in self._waiting:
            return image
        self._waiting.discard(listed)
        frames = "".join(_frame(box, size) for box in self.meta.get("needle_boxes", {}).get(listed, []))
        return f'<span class="shot needle" {self._id()}>{image}{frames}</span>'


def _frame(box: list[int], size: tuple[int, int]) -> str:
    left, top, right, bottom = box
    wide, high = size
    place = (100 * left / wide, 100 * top / high, 100 * (right - left) / wide, 100 * (bottom - top) / high)
    return '<i style="left:{:.1f}%;top:{:.1f}%;width:{:.1f}%;height:{:.1f}%"></i>'.format(*place)


def _root(path: Path, names: list[str]) -> Path:
    """Return the nearest folder above `path` that contains the first image of a record.

    A folder in it where the published trees keep their images counts too.
    """
    above = list(path.absolute().parents)[:4]
    nearest = [folder / below for folder in above for below in ("", "images")]
    for pattern in ("image/long_mr/*", "image/long_vqa/*/*/*"):
        nearest += [found for folder in above for found in sorted(folder.glob(pattern))]
    return next((folder for folder in nearest if names and (folder / names[0]).is_file()), path.parent)
