"""Small pictures, all deterministic: colored shapes on white, bar charts, digits, lines of text."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 20),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (139, 69, 19),
}
SHAPES = ("circle", "rectangle", "triangle")
Picture = Image.Image


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own scalable font; no system font is needed."""
    return ImageFont.load_default(size)


def shapes(things: Sequence[tuple[str, str]], size: int = 64) -> Picture:
    """Draw (color, shape) pairs side by side."""
    picture = Image.new("RGB", (size * max(1, len(things)), size), "white")
    draw = ImageDraw.Draw(picture)
    for i, (color, shape) in enumerate(things):
        left, right, top, bottom = i * size + size // 5, (i + 1) * size - size // 5, size // 5, size - size // 5
        fill = COLORS[color]
        if shape == "circle":
            draw.ellipse((left, top, right, bottom), fill=fill)
        elif shape == "rectangle":
            draw.rectangle((left, top + size // 10, right, bottom - size // 10), fill=fill)
        else:
            draw.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=fill)
    return picture


def bars(values: dict[str, int], width: int = 320, height: int = 240) -> Picture:
    """Draw a bar chart with a labeled bar for each entry, and its value on top."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    top, step = max(values.values()), (width - 20) // len(values)
    for i, ((name, value), color) in enumerate(zip(values.items(), COLORS.values(), strict=False)):
        left, right, ground = 20 + i * step, 10 + (i + 1) * step, height - 30
        high = ground - round((ground - 30) * value / top)
        draw.rectangle((left, high, right, ground), fill=color)
        draw.text(((left + right) / 2, high - 2), str(value), fill="black", font=font(14), anchor="mb")
        draw.text(((left + right) / 2, ground + 4), name, fill="black", font=font(14), anchor="mt")
    draw.line((15, height - 30, width - 5, height - 30), fill="black")
    return picture


def words(text: str, width: int = 160, height: int = 64, size: int = 20) -> Picture:
    """Draw a line of text in the middle of a white card."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((width / 2, height / 2), text, fill="black", font=font(size), anchor="mm")
    return picture


def digit(value: int, size: int = 64) -> Picture:
    """Draw one large digit."""
    return words(str(value), size, size, size * 3 // 4)


def save(picture: Picture, path: Path) -> None:
    """Write a PNG (a JPEG if the name ends so) and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="JPEG" if path.suffix == ".jpg" else "PNG")


def write_lines(path: Path, lines: str) -> None:
    """Write UTF-8 text and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines, encoding="utf-8")
