"""Images and videos decoded to RGB."""

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from vlm.core.errors import ConfigError, MediaError
from vlm.core.text import shown

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MISSING = "check the path, or the media root of the dataset"
FOLDER_FPS = 3.0
"""Frames per second of a video that is a folder of images (MVBench's TVQA clips)."""


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Yield the open image; whatever Pillow raises becomes a MediaError that names the file."""
    replace = "replace the file or remove the record"
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise MediaError(f"no such file: {shown(path)}", fix=MISSING) from error
    except IsADirectoryError as error:
        raise MediaError(f"{path} is a folder", expected="an image file", fix="name the file in it") from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: {error}", fix="scale the picture down") from error
    except UnidentifiedImageError as error:
        what = "is empty (0 bytes)" if Path(path).stat().st_size == 0 else "is not an image that Pillow can read"
        raise MediaError(f"{path} {what}", expected="JPEG, PNG, WebP, GIF, BMP, TIFF, …", fix=replace) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error) as error:
        raise MediaError(f"{path} cannot be decoded: {error}", fix=replace) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Return RGB as `convert("RGB")` does, except that 16-bit values are scaled to 8 bits (Pillow would clip them)."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max() > 255:
            image = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
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
    with _opened(path) as image:
        return _rgb(image)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) in pixels, read from the header alone.

    Raises:
        MediaError: The header cannot be read; the message names the file.
    """
    with _opened(path) as image:
        return image.size


def image_facts(path: str | Path) -> tuple[tuple[int, int], tuple[tuple[str, str], ...]]:
    """Return (width, height), and (kind, what) of what a viewer shows otherwise; both from the header alone.

    The kinds are `rotated` (EXIF), `transparent` and `float`. The picture is used as published: as it is stored.

    Raises:
        MediaError: The header cannot be read; the message names the file.
    """
    with _opened(path) as image:
        notes = []
        try:  # of a PNG without it in the header, getexif of its own class would decode the picture
            turned = Image.Image.getexif(image).get(0x0112, 1)
        except Exception:  # noqa: BLE001  # a damaged EXIF block changes no pixel
            turned = 1
        if turned in range(2, 9):
            notes.append(("rotated", f" is stored turned (EXIF orientation {turned})"))
        if image.has_transparency_data:
            notes.append(("transparent", f" has transparent parts (mode {image.mode})"))
        if image.mode.startswith("F"):
            notes.append(("float", f" has values of mode {image.mode}"))
        return image.size, tuple(notes)


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

    Raises:
        MediaError: The file is missing, empty or undecodable, or the clip is outside the video; the message names it.

    >>> len(load_video("clip.mp4", segments=8, clip=(2.0, 5.0)))    # doctest: +SKIP
    8
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        return [load_image(files[i]) for i in _chosen(path, len(files), FOLDER_FPS, segments, clip)]
    if path.suffix.lower() == ".gif":
        with _opened(path) as gif:
            fps = 1000 / (gif.info.get("duration") or 100)
            chosen = _chosen(path, getattr(gif, "n_frames", 1), fps, segments, clip)
            return _picked(chosen, ImageSequence.Iterator(gif), _rgb)
    if not path.is_file():
        raise MediaError(f"no such file: {shown(path)}", fix=MISSING)
    try:
        import decord
    except ImportError:  # it has no wheel for this machine
        return _with_av(path, segments, clip)
    if not _plausible(path):
        return _with_av(path, segments, clip)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        chosen = _chosen(path, len(reader), float(reader.get_avg_fps()), segments, clip)
        return [Image.fromarray(frame) for frame in reader.get_batch(chosen).asnumpy()]
    except (RuntimeError, decord.DECORDError):
        # PyAV has codecs that decord does not have; a broken file fails there too, with the file's name
        return _with_av(path, segments, clip)


def _chosen(path: Path, n_frames: int, fps: float, segments: int, clip: tuple[float, float] | None) -> list[int]:
    if segments < 1:
        raise ConfigError(f"{segments} frames of a video", expected="at least 1")
    if n_frames == 0:
        raise MediaError(f"{path} has no frames", fix="replace the file or remove the record")
    if clip and not 0 <= clip[0] * fps < n_frames:
        raise MediaError(f"{path}: clip {clip} starts outside its {n_frames / fps:.1f} s", fix="correct the clip")
    return frame_indices(n_frames, fps, segments, clip)


def _picked(chosen: list[int], frames: Iterable[Any], picture: Callable[[Any], Image.Image]) -> list[Image.Image]:
    """Return the frames with these indices as pictures; no other frame stays in memory."""
    kept = {i: picture(frame) for i, frame in enumerate(frames) if i in chosen}
    return [kept[i] for i in chosen]


def _plausible(path: Path) -> bool:
    """Return whether the header of a video agrees with itself.

    decord trusts the number of frames in it, and a wrong one aborts the process.
    """
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            frames = float((stream.duration or 0) * (stream.time_base or 0) * (stream.average_rate or 0))
            plausible = stream.codec_context is not None and stream.frames <= 2 * frames + 2
    except (av.error.FFmpegError, IndexError, ValueError):
        return False
    return plausible


def _with_av(path: Path, segments: int, clip: tuple[float, float] | None) -> list[Image.Image]:
    import av

    replace = "replace the file or remove the record"
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:  # decoding it would crash the process
                raise MediaError(f"{path} holds a video of an unknown codec", fix=replace)
            fps = float(stream.average_rate or 25)
            n_frames = sum(1 for _ in container.decode(stream))  # headers may lie about their number
        chosen = _chosen(path, n_frames, fps, segments, clip)
        with av.open(str(path), metadata_errors="replace") as container:
            pictures = _picked(chosen, container.decode(video=0), lambda frame: frame.to_image())
    except (IndexError, av.error.EOFError) as error:
        raise MediaError(f"{path} has no frames", expected="a video", fix=replace) from error
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"{path} cannot be decoded: {error}", fix=replace) from error
    return pictures
