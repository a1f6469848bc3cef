"""Short videos whose frames differ in brightness, or are given pictures."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path,
    frames: Sequence[int | np.ndarray],
    size: tuple[int, int] = (32, 32),
    rate: int = 10,
    *,
    codec: str = "mpeg4",
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
) -> Path:
    """Write a video of `size` (width, height) with a frame for each value: its brightness, or its RGB picture.

    Without values the file has a header alone.

    Args:
        path: The file; its suffix names the container.
        frames: Brightness or picture of each frame.
        size: In pixels.
        rate: Frames a second.
        codec: An encoder of FFmpeg.
        options: Of the encoder.
        container: Options of the container.
        times: When each frame is shown, in thousandths of a second; by default at `rate`.
    """
    with av.open(str(path), "w", options=dict(container or {})) as output:
        stream = output.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        unit = Fraction(1, 1000) if times else Fraction(1, rate)
        stream.codec_context.time_base = unit
        output.start_encoding()
        for k, value in enumerate(frames):
            picture = value if isinstance(value, np.ndarray) else np.full((size[1], size[0], 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = times[k] if times else k, unit
            output.mux(stream.encode(frame))
        if len(frames):
            output.mux(stream.encode())
    return path
