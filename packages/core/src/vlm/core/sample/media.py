"""Images and videos decoded to RGB: the one door through which every picture and video is opened."""

import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageSequence, UnidentifiedImageError

from vlm.core.errors import ConfigError, DataError, MediaError
from vlm.core.reading import check_regular, is_folder, open_regular
from vlm.core.sample.video import REPLACE, video_frames
from vlm.core.text import printable, shown

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MISSING = "check the path, or the media root of the dataset"
FOLDER_FPS = 3.0
"""Frames per second of a video that is a folder of images (MVBench's TVQA clips)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "DIB", "ICO", "JPEG2000", "MPO", "PPM", "AVIF")
"""Formats that are read. Pillow knows more; of those, some start other programs (EPS: Ghostscript)."""

PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")

LOOKS_LIKE = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself"),
    (b"%!PS", "is PostScript"),
    (b"\xc5\xd0\xd3\xc6", "is PostScript"),
    (b"%PDF", "is a PDF"),
    (b"\x1f\x8b", "is compressed with gzip"),
    (b"PK\x03\x04", "is a zip archive"),
    (b"<svg", "is an SVG drawing"),
    (b"<!doctype", "is a web page"),
    (b"<html", "is a web page"),
    (b"<head", "is a web page"),
    (b"<?xml", "is XML (an SVG drawing?)"),
)
"""How a file begins, in lower case where it is text -> what it is instead of an image."""


@contextmanager
def opened_image(source: str | Path | bytes, name: str = "") -> Iterator[Image.Image]:
    """Yield an open image of one of `FORMATS`; whatever goes wrong becomes a MediaError that names it.

    Args:
        source: A file, or the bytes of one.
        name: What error messages call the bytes.

    Raises:
        MediaError: The source is missing, no regular file, not such an image, damaged, or larger than Pillow reads.

    >>> with opened_image("cat.jpg") as image:    # doctest: +SKIP
    ...     image.size, image.format
    """
    said = name or shown("picture" if isinstance(source, bytes) else source)
    head = b""
    # Pillow warns about half of the size that it refuses; such a scan is a good picture
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
            head = file.read(64)
            with _parsed(file, head) as image:
                yield image
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"no such file: {said}", fix=MISSING) from error
    except DataError as error:
        raise MediaError(error.found, expected=error.expected, fix=error.fix) from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"{said}: {error}", fix="scale the picture down") from error
    except UnidentifiedImageError as error:
        raise MediaError(f"{said} {_what(head)}", expected="JPEG, PNG, WebP, GIF, BMP, TIFF, …", fix=REPLACE) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, RuntimeError, struct.error) as error:
        reason = getattr(error, "strerror", None) or printable(error)
        raise MediaError(f"{said} cannot be decoded: {reason}", fix=REPLACE) from error


def _parsed(file: IO[bytes], head: bytes) -> Image.Image:
    """Return the image, without the texts of a PNG: Pillow refuses large ones, whatever the picture."""
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    file.seek(0)
    try:
        image = Image.open(file, formats=formats)
    except ValueError:
        if not head.startswith(PNG):
            raise
        image = Image.open(io.BytesIO(_without_texts(file)), formats=["PNG"])
    chunks = getattr(image, "png", None)
    if chunks is not None:  # those behind the pixels
        for kind in PNG_TEXT:
            setattr(chunks, f"chunk_{kind.decode()}", partial(_skip, chunks))
    return image


def _skip(chunks: Any, position: int, length: int) -> bytes:
    """Read a chunk of a PNG and do nothing with it."""
    data: bytes = ImageFile._safe_read(chunks.fp, length)
    return data


def _without_texts(file: IO[bytes]) -> bytes:
    """Return a PNG without its text chunks."""
    file.seek(0)
    data, at = file.read(), len(PNG)
    kept = [PNG]
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] not in PNG_TEXT:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _what(head: bytes) -> str:
    """Return what a file that is no image is, by its first bytes."""
    if not head:
        return "is empty (0 bytes)"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "is HEIC: convert it to JPEG or PNG"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    known = (what for begin, what in LOOKS_LIKE if start.startswith(begin) or start.lower().startswith(begin))
    return next(known, "is not an image that is read here")


def _rgb(image: Image.Image) -> Image.Image:
    """Return RGB as `convert("RGB")` does, except that 16-bit values are scaled to 8 bits (Pillow would clip them)."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max() > 255:
            image = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "LAB":  # Pillow converts it by a color profile alone
        lab, rgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
        return cast("Image.Image", ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    return image.convert("RGB")


def load_image(path: str | Path) -> Image.Image:
    """Load an image file as RGB: CMYK and palettes converted, 16 bits scaled to 8, the first frame of an animation.

    EXIF rotation is not applied (as published).

    Raises:
        MediaError: The file is missing, empty, truncated, corrupt, not an image, or has more pixels than Pillow reads
            (178,956,970).

    >>> load_image("dataset/digits/images/0000.png").size    # doctest: +SKIP
    (64, 64)
    """
    with opened_image(path) as image:
        return _rgb(image)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) in pixels, read from the header alone.

    Raises:
        MediaError: The header cannot be read; the message names the file.
    """
    with opened_image(path) as image:
        return image.size


def image_facts(path: str | Path) -> tuple[tuple[int, int], bool, tuple[tuple[str, str], ...]]:
    """Return (width, height), whether it is whole, and what a viewer shows otherwise, without decoding.

    A JPEG or PNG without its end marker is not whole. What is shown otherwise is (kind, words): `rotated` (EXIF),
    `transparent`, `float`. The picture is used as published: as it is stored.

    Raises:
        MediaError: The header cannot be read; the message names the file.
    """
    with opened_image(path) as image:
        notes = []
        try:  # of a PNG without it in the header, getexif of its own class would decode the picture
            turned = Image.Image.getexif(image).get(0x0112, 1)
        except Exception:  # noqa: BLE001  # a damaged EXIF block changes no pixel
            turned = 1
        if turned in range(2, 9):
            notes.append(("rotated", f" is stored turned (EXIF orientation {turned}) and used as it is stored"))
        if image.has_transparency_data:
            notes.append(
                ("transparent", f" has transparent parts ({image.mode}); the color below them is used, often black")
            )
        if image.mode.startswith("F"):
            notes.append(("float", f" has floating-point values ({image.mode}), used as 0 to 255"))
        return image.size, _is_finished(image.fp), tuple(notes)  # type: ignore[attr-defined]  # of an open file


def _is_finished(file: Any) -> bool:
    """Return whether a JPEG or PNG has its end marker; True for other files."""
    file.seek(0)
    first = file.read(4)
    file.seek(max(0, file.seek(0, os.SEEK_END) - 1024))
    tail = file.read(1024)
    if first[:2] == b"\xff\xd8":
        return b"\xff\xd9" in tail
    return first != b"\x89PNG" or b"IEND" in tail


def frame_indices(n_frames: int, fps: float, segments: int, bound: tuple[float, float] | None = None) -> list[int]:
    """Return the index of the middle frame of each of `segments` equal parts of a video.

    Short videos repeat frames. Source: quick start of the published models (OpenGVLab/InternVL).

    Args:
        n_frames: Frames of the video.
        fps: Frames per second.
        segments: Number of indices.
        bound: A range in seconds, instead of the whole video.

    >>> frame_indices(300, 30.0, 8)
    [18, 55, 93, 130, 168, 205, 242, 280]
    """
    first, last = 0, n_frames - 1
    if bound:
        first, last = max(first, round(bound[0] * fps)), min(round(bound[1] * fps), last)
    length = (last - first) / segments
    # numpy and Python round half to even, as the published code does
    return [int(first + length / 2 + round(length * k)) for k in range(segments)]


def load_video(path: str | Path, segments: int, clip: tuple[float, float] | None = None) -> list[Image.Image]:
    """Load `segments` RGB frames of a video file, a GIF, or a folder of images; `clip` is a range in seconds.

    Frame k of a video file is the k-th that decoding it from its start shows, whatever container and decoder.

    Raises:
        MediaError: The file is missing, empty, cut short or undecodable, or the clip is outside the video; the message
            names it.

    >>> len(load_video("clip.mp4", segments=8, clip=(2.0, 5.0)))    # doctest: +SKIP
    8
    """

    def choose(n_frames: int, fps: float) -> list[int]:
        return _chosen(path, n_frames, fps, segments, clip)

    try:
        if is_folder(path):
            return [load_image(file) for file in folder_frames(path, segments, clip)]
        check_regular(path)
    except (MediaError, ConfigError):
        raise
    except (DataError, OSError) as error:
        raise MediaError(getattr(error, "found", f"{printable(path)}: {error}"), fix=REPLACE) from error
    if str(path).lower().endswith(".gif"):
        with opened_image(path) as gif:
            fps = 1000 / (gif.info.get("duration") or 100)
            return _picked(choose(getattr(gif, "n_frames", 1), fps), ImageSequence.Iterator(gif), _rgb)
    return video_frames(path, choose)


def folder_frames(path: str | Path, segments: int, clip: tuple[float, float] | None = None) -> list[Path]:
    """Return the image files that `load_video` loads of a folder.

    Raises:
        MediaError: It has no images, or the clip is outside.
    """
    files = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return [files[i] for i in _chosen(path, len(files), FOLDER_FPS, segments, clip)]


def _chosen(path: str | Path, n_frames: int, fps: float, segments: int, clip: tuple[float, float] | None) -> list[int]:
    if segments < 1:
        raise ConfigError(f"{segments} frames of a video", expected="at least 1")
    if n_frames == 0:
        raise MediaError(f"{printable(path)} has no frames", fix="replace the file or remove the record")
    if clip and not 0 <= clip[0] * fps < n_frames:
        raise MediaError(
            f"{printable(path)}: clip {clip} starts outside its {n_frames / fps:.1f} s", fix="correct the clip"
        )
    return frame_indices(n_frames, fps, segments, clip)


def _picked(chosen: list[int], frames: Iterable[Any], picture: Callable[[Any], Image.Image]) -> list[Image.Image]:
    """Return the frames with these indices as pictures; no other frame stays in memory."""
    kept = {i: picture(frame) for i, frame in enumerate(frames) if i in chosen}
    return [kept[i] for i in chosen]
