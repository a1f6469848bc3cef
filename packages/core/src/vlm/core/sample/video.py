"""Frames of a video file, addressed by the time at which they are shown, whatever decodes them.

The list of frames of a file is what decoding it from the start to the end shows, in that order. Where a container says
for each packet when it is shown (MP4, Matroska), the list is read without decoding, and frames are decoded from the
key frame before them. Elsewhere everything is decoded. decord, which is quicker, is used where its frames are proved
to be these.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlm.core.errors import DataError, MediaError
from vlm.core.reading import open_regular, within
from vlm.core.text import printable

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "asf",
    "flv",
    "ogg",
    "nut",
    "ivf",
)
"""Containers that are read (names of FFmpeg). No playlist is among them: those name other files and addresses."""

TIMED = {
    CONTAINERS[0]: {"h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg"},
    CONTAINERS[1]: {"h264", "hevc", "vp9", "av1"},
}
"""Container -> codecs of which each packet is one frame that is shown at the time of the packet."""

LASTS = {CONTAINERS[0], CONTAINERS[1], "flv"}
"""Containers whose header announces how long the video lasts; MPEG streams announce nothing."""

WHOLE = 0.97
"""A file with less of the announced frames or time is not whole; headers are often a frame or two off."""

DECODE_SECONDS = 600.0
"""Longest wait for decord, which opens files by itself."""

LARGEST = 178_956_970
"""Most pixels of a frame: Pillow's limit for a picture."""

TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
"""Degrees clockwise -> what Pillow, which counts the other way, calls it."""

PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"<ASX", b"<asx", b"[reference]", b"[Reference]", b"v=0")
REPLACE = "replace the file or remove the record"

Choose = Callable[[int, float], list[int]]
"""function(number of frames, frames per second) -> indices of the wanted frames."""


class _Index(NamedTuple):
    """What the packets of a file say about its frames.

    `times` of the shown frames in seconds, ascending; `stamps` the same in units of the stream. `keys` maps the place
    of each key frame in that list to the stamp to seek. `exact`: the list is that of the decoded frames. `closed`: no
    frame after a key frame needs one before it, and none is left out. `shape`: height, width and colors as stored.
    """

    stamps: list[int]
    times: np.ndarray
    keys: dict[int, int]
    fps: float
    exact: bool
    closed: bool
    shape: tuple[int, int, int]


def video_frames(path: str | Path, choose: Choose) -> list[Image.Image]:
    """Return the chosen RGB frames of a video file, turned upright as its metadata say.

    Args:
        path: The file.
        choose: Which frames; it is told their number and how many there are in a second.

    Raises:
        MediaError: The file is missing, cut short, has no frames or cannot be decoded; the message names it.
    """
    with _opened(path) as (container, stream):
        index = _read_index(path, container, stream)
        if index.exact:
            chosen = choose(len(index.stamps), index.fps)
            frames = _by_decord(path, index, chosen) if index.closed else None
            frames = frames or _by_seeking(container, stream, index, chosen)
            if frames:
                return frames
    return _in_sequence(path, index, choose)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Yield an open container and its video stream; what FFmpeg raises becomes a MediaError that names the file."""
    import av

    shown = printable(path)
    try:
        with open_regular(path) as file:
            head = file.peek(16)[:16]
            if head.lstrip().startswith(PLAYLISTS):
                raise MediaError(f"{shown} is a playlist", expected="a video; other files are not read", fix=REPLACE)
            # no protocol is needed for a file that is already open, so that nothing can open another one
            options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
            with av.open(file, container_options=options, metadata_errors="replace", buffer_size=1 << 18) as container:
                stream = container.streams.video[0]
                if stream.codec_context is None:  # decoding it would crash the process
                    raise MediaError(f"{shown} holds a video of an unknown codec", fix=REPLACE)
                if stream.width * stream.height > LARGEST:
                    size = f"{stream.width} x {stream.height}"
                    raise MediaError(f"{shown}: frames of {size} exceed limit of {LARGEST} pixels", fix=REPLACE)
                stream.codec_context.options = {"max_pixels": str(LARGEST)}
                stream.codec_context.thread_count = 1
                yield container, stream
    except FileNotFoundError as error:
        raise MediaError(f"no such file: {shown}", fix="check the path, or the media root of the dataset") from error
    except MediaError:
        raise
    except DataError as error:
        raise MediaError(error.found, expected=error.expected, fix=error.fix) from error
    except (IndexError, av.error.EOFError) as error:
        raise MediaError(f"{shown} has no frames", expected="a video", fix=REPLACE) from error
    except (av.error.FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{shown} cannot be decoded: {reason}", fix=REPLACE) from error


def _read_index(path: str | Path, container: Any, stream: Any) -> _Index:
    """Read the packets of a file. Raises MediaError where clearly fewer are there than the header announces."""
    name, rate, unit = container.format.name, stream.average_rate, stream.time_base
    shown: list[tuple[int, int, bool]] = []  # stamp, stamp to seek, is it a key frame
    packets, end, gap, last_key, is_open = 0, 0.0, False, None, False
    codec, head = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    maybe_closed = name == CONTAINERS[0] and codec == "h264" and len(head) > 4 and head[0] == 1
    length = (head[4] & 3) + 1 if maybe_closed else 0
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index or (packet.size == 0 and packet.pts is None):
            continue
        packets += 1
        if packet.is_discard or packet.pts is None:
            gap = True
            continue
        if packet.is_keyframe:
            last_key = packet.pts
            is_open |= maybe_closed and not _is_closed(bytes(packet), length)
        is_open |= last_key is None or packet.pts < last_key
        shown.append((packet.pts, packet.pts if packet.dts is None else packet.dts, packet.is_keyframe))
    shown.sort(key=lambda packet: packet[0])
    stamps = [stamp for stamp, _, _ in shown]
    times = np.array(stamps, float) * float(unit or 0)
    span = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    fps = float(rate) if rate else (len(times) - 1) / span if span else 25.0
    _refuse_short(path, container, stream, packets, end, times)
    exact = codec in TIMED.get(name, ()) and bool(shown) and None not in stamps and len(set(stamps)) == len(stamps)
    closed = maybe_closed and not gap and not is_open and stream.frames == len(stamps)
    keys = {place: seek for place, (_, seek, is_key) in enumerate(shown) if is_key}
    return _Index(stamps, times, keys, fps, exact and 0 in keys, closed, (stream.height, stream.width, 3))


def _is_closed(packet: bytes, length: int) -> bool:
    """Return whether a packet of H.264 restarts decoding: it holds an IDR picture, no mere recovery point.

    Args:
        packet: Units, each after its length, as MP4 stores them.
        length: Bytes of a length.
    """
    at = 0
    while at + length < len(packet):
        if packet[at + length] & 31 == 5:
            return True
        at += length + int.from_bytes(packet[at : at + length])
    return False


def _refuse_short(path: str | Path, container: Any, stream: Any, packets: int, end: float, times: np.ndarray) -> None:
    """Raise MediaError where clearly fewer packets are in the file than its header announces, in number and in time.

    How long the last frame is shown is often not said: without a number, two of the largest gaps may be missing.
    """
    number, missing = stream.frames, stream.frames - packets
    short = bool(number) and packets < WHOLE * number and missing >= 2
    if container.format.name in LASTS and (short or not number):
        lasts = (container.duration or 0) / 1e6
        slack = 0.0 if number else 2 * float(np.diff(times).max(initial=lasts if len(times) < 2 else 0.0))
        short = end < WHOLE * lasts and lasts - end >= slack  # else an edit list shows a part of the frames
        number = number or (round(packets * lasts / end) if end else 1)
    if short:
        raise MediaError(
            f"{printable(path)} holds {packets} frames of about {number} that its header announces",
            expected="a whole file",
            fix="fetch the file again: it was cut short",
        )


def _by_decord(path: str | Path, index: _Index, chosen: list[int]) -> list[Image.Image] | None:
    """Return the frames as decord reads them; None where it is absent, fails, or lists other frames."""
    try:
        import decord
    except ImportError:  # it has no wheel for this machine
        return None

    def read() -> list[Image.Image] | None:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != len(index.stamps) or sorted(reader.get_key_indices()) != sorted(index.keys):
            return None
        times = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        if np.abs((times - times[0]) - (index.times - index.times[0])).max() > 0.25 / index.fps:
            return None
        frames = reader.get_batch(chosen).asnumpy()
        if frames.shape[1:] != index.shape:  # a turned video
            return None
        return [Image.fromarray(frame) for frame in frames]

    try:
        return within(DECODE_SECONDS, str(path), read)
    except (RuntimeError, decord.DECORDError):
        return None


def _by_seeking(container: Any, stream: Any, index: _Index, chosen: list[int]) -> list[Image.Image] | None:
    """Return the frames, decoded from the key frames before them; None where other frames appear than are listed."""
    import av

    keys = np.array(sorted(index.keys))
    pictures: dict[int, Image.Image] = {}
    wanted = sorted(set(chosen))
    try:
        for key, places in groupby(wanted, lambda place: int(keys[np.searchsorted(keys, place, side="right") - 1])):
            group = set(places)
            container.seek(index.keys[key], stream=stream)
            at, last = key, max(group)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts < index.stamps[key]:
                    continue  # it needs frames before the key frame
                if frame.pts != index.stamps[at] or frame.is_corrupt:
                    return None
                if at in group:
                    pictures[at] = _picture(frame)
                at += 1
                if at > last:
                    break
    except av.error.FFmpegError:
        return None
    return [pictures[place] for place in chosen] if len(pictures) == len(wanted) else None


def _in_sequence(path: str | Path, index: _Index, choose: Choose) -> list[Image.Image]:
    """Return the frames of a file that is decoded from its start; twice where the packets tell a wrong number."""
    count = len(index.stamps)
    while True:
        try:
            chosen = choose(count, index.fps)
        except MediaError:  # no frame, or a clip outside: only the number of decoded frames can say so
            chosen = []
        wanted, pictures, found = set(chosen), {}, 0
        with _opened(path) as (container, stream):
            for frame in container.decode(stream):
                if found in wanted:
                    pictures[found] = _picture(frame)
                found += 1
        if found == count:
            return [pictures[place] for place in chosen or choose(count, index.fps)]
        count = found


def _picture(frame: Any) -> Image.Image:
    """Return a decoded frame in RGB, with the colors that its file declares (as decord does), turned upright."""
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    chain = [source, graph.add("scale", "flags=bilinear"), graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*chain).configure()
    graph.push(frame)
    picture = Image.fromarray(graph.pull().to_ndarray())
    turn = TURNS.get(round(-frame.rotation) % 360)
    return picture if turn is None else picture.transpose(turn)
