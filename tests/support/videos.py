"""Short videos whose frames differ in brightness."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, brightness: Sequence[int], size: tuple[int, int] = (32, 32), rate: int = 10) -> Path:
    """Write an MPEG-4 video of `size` (width, height) with one gray frame for each value.

    Without values the file has a header alone.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        container.start_encoding()
        for value in brightness:
            gray = np.full((size[1], size[0], 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        if brightness:
            container.mux(stream.encode())
    return path
