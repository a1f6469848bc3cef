"""The position of every token: 0, 1, 2, ... or V2PE, where one tile advances the position by a stride.

Published as V2PE (arXiv 2412.09616; OpenGVLab/V2PE). Text tokens and `<img>` count up by one; the k-th context
token of an image (k = 1, 2, ...) is at `pos(<img>) + k * stride / tokens_per_tile`; `</img>` is at `ceil(last) + 1`.
"""

import math
import random
from collections.abc import Sequence

import numpy as np

from vlm.core.errors import DataError

STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The strides drawn in the published training (positions per tile of 256 tokens)."""

USUAL_INCREMENT = 1 / 4
"""Positions a token of the published evaluation: stride 64 over 256 tokens, for every benchmark."""

Layout = Sequence[tuple[str, int]]
"""`("text", n tokens)` and `("image", n tiles)`; with brackets an image includes its `<img>` and `</img>`."""


def draw_strides(n_images: int, rng: random.Random, choices: Sequence[float] = STRIDES) -> list[float]:
    """Draw one stride per image, uniformly; all tiles of an image share it (published rule `v2pe_rnd`).

    >>> draw_strides(3, random.Random(0))
    [64, 64, 1]
    """
    return [rng.choice(choices) for _ in range(n_images)]


def default_stride(choices: Sequence[float], tokens_per_tile: int) -> float:
    """Return the stride to use after training with random ones: the nearest, by ratio, to the published evaluation's.

    Source: ours. The published evaluation takes 64 over 256 tokens, 1/4 position a token.

    >>> default_stride(STRIDES, 256), default_stride((0.5, 1, 2, 4), 4)
    (64.0, 1.0)
    """
    return float(min(choices, key=lambda stride: abs(math.log(stride / tokens_per_tile / USUAL_INCREMENT))))


def positions(
    layout: Layout,
    tokens_per_tile: int = 256,
    strides: float | Sequence[float] | None = None,
    float32_rule: bool = False,
    *,
    brackets: bool = True,
) -> np.ndarray:
    """Return the position of every token of one sample, float64 [n].

    Args:
        layout: `("text", n tokens)` and `("image", n tiles)` in reading order.
        tokens_per_tile: Context tokens of one tile.
        strides: None for 0, 1, 2, ...; a number for all images; or one number per image. A stride equal to
            `tokens_per_tile` gives 0, 1, 2, ... too.
        float32_rule: Round to float32 where the published code does.
        brackets: False for families without `<img>` and `</img>` (ours): the k-th context token is then at
            `previous + k * stride / tokens_per_tile`, and the next text token at `ceil(last) + 1`.

    Raises:
        DataError: An unknown kind, a negative count, an image without tiles, a stride that is not positive, or a number
            of strides that differs from the number of images.

    >>> positions([("text", 2), ("image", 1), ("text", 1)], tokens_per_tile=4, strides=2).tolist()
    [0.0, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0]
    """
    for kind, count in layout:
        if kind not in ("text", "image") or count < (kind == "image"):
            raise DataError(f"bad layout item {(kind, count)!r}", expected='("text", n >= 0) or ("image", tiles >= 1)')
    images = sum(kind == "image" for kind, _ in layout)
    n = sum(c if kind == "text" else c * tokens_per_tile + 2 * brackets for kind, c in layout)
    counting = np.arange(n, dtype=np.float64)
    if strides is None:
        return counting
    per_image = [float(s) for s in strides] if isinstance(strides, Sequence) else [float(strides)] * images
    if len(per_image) != images:
        raise DataError(f"{len(per_image)} strides for {images} images", expected="one stride per image")
    if not all(0 < s < math.inf for s in per_image):
        raise DataError(f"strides {per_image} are not all positive", expected="positions per tile, above 0")

    last, at, out = -1, 0, np.empty(n)
    steps: dict[tuple[int, float], np.ndarray] = {}  # most images have one of a few sizes
    remaining = iter(per_image)
    for kind, count in layout:
        if kind == "text":
            np.add(counting[:count], last + 1, out=out[at : at + count])
            last, at = last + count, at + count
            continue
        stride = next(remaining)
        if (step := steps.get((count, stride))) is None:
            step = steps[count, stride] = (counting[: count * tokens_per_tile] + 1) * stride / tokens_per_tile
        last += brackets
        context = out[at + brackets : at + brackets + step.size]
        np.add(step, last, out=context)
        if float32_rule:
            context[:] = context.astype(np.float32)
        start, last = last, math.ceil(context[-1]) + brackets
        if brackets:
            out[at], out[at + step.size + 1] = start, last
        at += step.size + 2 * brackets
    return out
