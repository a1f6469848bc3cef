"""Messages as content parts of the OpenAI protocol: images as data URLs, newlines left to the server's template."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.core.sample.encode import frames_as_images
from vlm.core.sample.media import load_image, load_video, opened_image
from vlm.core.sample.records import Message, Part, text

FRAMES = 8
"""Frames taken from a video when the benchmark names no number."""

NEWLINES = ("front", "each", "none")
"""After which images a server's template writes a newline: those before any text, as our exports do; each, as the
published `-hf` templates do; none."""

ORIENTATION = 0x0112
"""EXIF tag of a photograph's rotation."""


def content_parts(message: Message, newline: str) -> list[dict[str, Any]]:
    """Return text and image parts in the server's protocol; a video becomes `Frame1: <image>` lines, as published.

    A newline that the server's template will write after an image is taken from the text.
    """
    (expanded,) = frames_as_images([message], load_video, FRAMES)
    parts: list[dict[str, Any]] = []
    for part in _without_newlines(expanded["content"], newline):
        if part["type"] == "image":
            parts.append(image_url(png(part["image"]) if "image" in part else image_bytes(part["path"])))
        elif part["type"] == "text" and part["text"]:
            parts.append({"type": "text", "text": part["text"]})
    return parts


def _without_newlines(content: Sequence[Part], newline: str) -> list[Part]:
    """Return parts without the newlines after images that a server's template writes: see `NEWLINES`."""
    result: list[Part] = []
    front, after_image = True, False
    for i, part in enumerate(content):
        if part["type"] == "text":
            rest = part["text"].removeprefix("\n")
            # at the front, our template adds a newline unless white space or nothing follows the image
            written = not rest[:1].isspace() if rest else i + 1 < len(content)
            if after_image and (newline == "each" or (newline == "front" and front and written)):
                part = text(rest)
            front = front and not part["text"]
        after_image = part["type"] == "image"
        result.append(part)
    return result


def image_url(kind_and_data: tuple[str, bytes]) -> dict[str, Any]:
    """Return an image part of that kind (`png`, `jpeg`) and content."""
    kind, data = kind_and_data
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def image_bytes(path: str | Path) -> tuple[str, bytes]:
    """Return `jpeg` or `png` and the bytes to send, such that the server sees the picture that our models see.

    A JPEG or PNG in 8-bit RGB or gray without transparency, animation or a rotation in EXIF is sent unchanged; any
    other picture is decoded and sent as PNG.

    Raises:
        MediaError: The file is missing or cannot be decoded.
    """
    picture = load_image(path)  # the whole file is decoded: a damaged one is an error of this item, not of the server
    with opened_image(path) as image:
        plain = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and "transparency" not in image.info
        if plain and getattr(image, "n_frames", 1) == 1 and image.getexif().get(ORIENTATION, 1) == 1:
            return str(image.format).lower(), Path(path).read_bytes()
    return png(picture)


def png(picture: Image.Image) -> tuple[str, bytes]:
    """Return `png` and the picture as PNG."""
    out = BytesIO()
    picture.save(out, format="PNG", compress_level=1)
    return "png", out.getvalue()
