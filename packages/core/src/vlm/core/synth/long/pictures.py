"""Pictures made from sources: views, needles pasted in, pages of prose, and pages of several pictures."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageStat

from vlm.core.home import new_file
from vlm.core.sample.media import load_image
from vlm.core.synth.long.materials import Material

Box = tuple[int, int, int, int]
LONGEST = 896
"""Pixels of the longer side of a whole picture; larger ones are scaled down."""

NEEDLE = 224
"""Side of a needle picture in pixels."""

PASTED = 0.32
"""Side of a pasted needle, as a share of the shorter side of the picture that it is pasted into."""

ASPECTS = ((1, 1), (1, 1), (4, 3), (3, 4), (3, 2), (2, 3))
FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "STIXGeneral.ttf")
load = lru_cache(maxsize=16)(load_image)


@dataclass(frozen=True)
class Picture:
    """A picture to be drawn: its `name` below the images folder, (width, height), and its sources.

    `boxes`: (left, top, right, bottom) of what is hidden in it; `part`: more for the manifest; `copied`: the file of
    the source is taken as it is, byte for byte.
    """

    name: str
    size: tuple[int, int]
    sources: tuple[Material, ...]
    draw: Callable[[], Image.Image]
    boxes: tuple[Box, ...] = ()
    part: dict[str, Any] = field(default_factory=dict)
    copied: bool = False

    def save(self, folder: Path) -> None:
        """Write the picture below `folder` unless it is there; any process writes the same bytes."""
        if (folder / self.name).exists():
            return
        if self.copied:
            content = self.sources[0].path.read_bytes()
        else:
            buffer = BytesIO()
            png = self.name.endswith(".png")
            self.draw().save(buffer, "PNG" if png else "JPEG", **({} if png else {"quality": 92}))
            content = buffer.getvalue()
        # not flushed: thousands of flushes take minutes, and a resumed build checks every hash
        with new_file(folder / self.name, flush=False) as temporary:
            temporary.write_bytes(content)


def whole(source: Material) -> Picture:
    """Return a source as it is, at most LONGEST pixels on the longer side."""
    scale = min(1.0, LONGEST / max(source.size))
    size = (round(source.size[0] * scale), round(source.size[1] * scale))
    return Picture(f"pool/{source.key}-0.jpg", size, (source,), lambda: load(source.path).resize(size))


def original(source: Material) -> Picture:
    """Return the unchanged file of a source."""
    name = f"{source.key}{source.path.suffix.lower()}"
    return Picture(name, source.size, (source,), lambda: load(source.path), copied=True)


def view(source: Material, k: int, seed: int) -> Picture:
    """Return the k-th window of a source, of random size, place and shape; a function of (seed, content, k)."""
    if k == 0:
        return whole(source)
    rng = random.Random(f"view/{seed}/{source.content}/{k}")
    across, down = rng.choice(ASPECTS)
    unit = min(source.size[0] / across, source.size[1] / down) * rng.uniform(0.5, 0.95)
    wide, high = max(1, int(unit * across)), max(1, int(unit * down))
    left, top = rng.randint(0, source.size[0] - wide), rng.randint(0, source.size[1] - high)
    scale = 448 / min(wide, high)
    size = (round(wide * scale), round(high * scale))
    box = (left, top, left + wide, top + high)
    part = {"window": list(box)}
    return Picture(
        f"pool/{source.key}-{k}.jpg", size, (source,), lambda: load(source.path).resize(size, box=box), (), part
    )


def square(source: Material) -> Picture:
    """Return the middle square of a source, 448x448: the cheapest picture."""
    side = min(source.size)
    left, top = (source.size[0] - side) // 2, (source.size[1] - side) // 2
    box = (left, top, left + side, top + side)
    return Picture(
        f"pool/{source.key}-square.jpg", (448, 448), (source,), lambda: load(source.path).resize((448, 448), box=box)
    )


def needle(source: Material, rng: random.Random, name: str) -> Picture:
    """Return the window with most detail out of twelve, as a square of NEEDLE pixels."""
    picture = load(source.path)
    side = max(64, int(min(source.size) * rng.uniform(0.35, 0.5)))
    corners = [(rng.randint(0, source.size[0] - side), rng.randint(0, source.size[1] - side)) for _ in range(12)]
    boxes = [(x, y, x + side, y + side) for x, y in corners]
    best = max(boxes, key=lambda box: ImageStat.Stat(picture.crop(box).convert("L")).stddev[0])
    size = (NEEDLE, NEEDLE)
    return Picture(name, size, (source,), lambda: picture.resize(size, box=best), (), {"window": list(best)})


def places(size: tuple[int, int], count: int, rng: random.Random) -> tuple[Box, ...]:
    """Return `count` boxes (at most 2) for needles in a picture of that size; two lie in different halves."""
    side = int(min(size) * PASTED)
    across = size[0] >= size[1]
    longer = max(size)
    boxes = []
    for k in range(count):
        start = rng.randint(k * longer // count, (k + 1) * longer // count - side)
        other = rng.randint(0, min(size) - side)
        x, y = (start, other) if across else (other, start)
        boxes.append((x, y, x + side, y + side))
    return tuple(boxes)


def paste(base: Picture, needles: Sequence[tuple[Picture, Box]], name: str) -> Picture:
    """Return `base` with each needle in its box, in a thin white frame."""

    def draw() -> Image.Image:
        picture = Image.new("RGB", base.size)  # a page of prose is gray, the needle is not
        picture.paste(base.draw())
        for needle, box in needles:
            picture.paste("white", box)
            side = box[2] - box[0] - 4
            picture.paste(needle.draw().resize((side, side)), (box[0] + 2, box[1] + 2))
        return picture

    boxes = tuple(box for _, box in needles)
    sources = (*base.sources, *(source for needle, _ in needles for source in needle.sources))
    return Picture(name, base.size, sources, draw, boxes, base.part)


def page(source: Material, k: int) -> Picture:
    """Return a page of prose in a font that matplotlib ships; a function of (content, k)."""
    rng = random.Random(f"page/{source.content}/{k}")
    size = rng.choice(((448, 448), (448, 672), (672, 448)))
    points, start = rng.randint(15, 20), rng.randrange(len(source.paragraphs))
    ordered = [*source.paragraphs[start:], *source.paragraphs[:start]]
    font_name = rng.choice(FONTS)

    def draw() -> Image.Image:
        sheet = Image.new("L", size, "white")
        ink, face = ImageDraw.Draw(sheet), font(font_name, points)
        y = 16
        for paragraph in ordered:
            for line in wrap(" ".join(paragraph), face, size[0] - 32):
                if y > size[1] - 16 - points:
                    return sheet
                ink.text((16, y), line, "black", face)
                y += round(1.35 * points)
            y += points // 2
        return sheet

    return Picture(f"pool/page-{source.key}-{k}.png", size, (source,), draw, (), {"paragraph": start})


def together(members: Sequence[tuple[Picture, str]], cell: int, name: str) -> Picture:
    """Return several pictures on one white page, row by row, each under its label."""
    columns, rows = _grid(len(members))
    strip = max(14, cell // 16)
    boxes: list[Box] = []
    for i, (member, _) in enumerate(members):
        scale = min((cell - 8) / member.size[0], (cell - strip - 8) / member.size[1])
        wide, high = max(1, int(member.size[0] * scale)), max(1, int(member.size[1] * scale))
        x, y = i % columns * cell + (cell - wide) // 2, i // columns * cell + strip + (cell - strip - high) // 2
        boxes.append((x, y, x + wide, y + high))

    def draw() -> Image.Image:
        sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
        ink, face = ImageDraw.Draw(sheet), font(FONTS[0], strip - 4)
        for i, ((member, label), box) in enumerate(zip(members, boxes, strict=True)):
            sheet.paste(member.draw().resize((box[2] - box[0], box[3] - box[1])), box)
            ink.text((i % columns * cell + 6, i // columns * cell + 2), label, "black", face)
        return sheet

    sources = tuple(source for member, _ in members for source in member.sources)
    return Picture(name, (columns * cell, rows * cell), sources, draw, tuple(boxes))


def page_size(n: int, cell: int) -> tuple[int, int]:
    """Return (width, height) of a page of `n` pictures."""
    columns, rows = _grid(n)
    return columns * cell, rows * cell


def _grid(n: int) -> tuple[int, int]:
    columns = next(c for c in range(1, n + 1) if c * c >= n)
    return columns, -(-n // columns)


@lru_cache
def font(name: str, points: int) -> ImageFont.FreeTypeFont:
    """Load a font that matplotlib ships, at that size in pixels."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)


def wrap(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return lines of at most `width` pixels; a longer word keeps its line."""
    lines: list[str] = []
    left, blank = 0.0, face.getlength(" ")
    for word in text.split():
        needed = face.getlength(word)
        if lines and needed + blank <= left:
            lines[-1] += f" {word}"
            left -= needed + blank
        else:
            lines.append(word)
            left = width - needed
    return lines
