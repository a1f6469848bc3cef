"""Short videos of colored shapes as files: MP4 (needs PyAV), or a folder of JPEG frames."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from PIL import Image

from vlm.eval.mini.draw import Picture, shapes

SIZE = 64
"""Side of a frame in pixels."""

STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Direction of a movement -> step to the right and down."""


def moving(color: str, shape: str, direction: str, n_frames: int) -> list[Picture]:
    """Draw the shape crossing the picture in a direction, from one side to the other."""
    thing, (dx, dy) = shapes([(color, shape)], SIZE // 2), STEPS[direction]
    frames, room = [], SIZE // 2
    for i in range(n_frames):
        way = round(room * i / max(1, n_frames - 1)) - room // 2
        frame = Image.new("RGB", (SIZE, SIZE), "white")
        frame.paste(thing, (room // 2 + dx * way, room // 2 + dy * way))
        frames.append(frame)
    return frames


def still(things: Sequence[tuple[str, str]], n_frames: int) -> list[Picture]:
    """Draw (color, shape) pairs side by side in a square; they do not move."""
    frame = Image.new("RGB", (SIZE, SIZE), "white")
    side = SIZE // len(things)
    frame.paste(shapes(things, side), (0, (SIZE - side) // 2))
    return [frame] * n_frames


def save_video(frames: Sequence[Picture], path: Path, fps: int = 8) -> None:
    """Write an MP4 (H.264), making its folder. The same frames give the same bytes."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    # deterministic: no time stamps, one thread, and no AVX code, whose output can depend on memory addresses
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps), options={"threads": "1", "crf": "18", "x264-params": "asm=SSE4.2"}
        )
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            picture: av.VideoFrame = av.VideoFrame.from_image(frame)  # type: ignore[no-untyped-call]  # PyAV has none
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def save_frames(frames: Sequence[Picture], folder: Path) -> None:
    """Write the frames as `00001.jpg`, `00002.jpg`, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, 1):
        frame.save(folder / f"{number:05d}.jpg", quality=95)
