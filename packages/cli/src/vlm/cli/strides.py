"""The `--stride` option: positions of a tile as the published scripts count them, or the paper's increment of a token.

>>> read_strides("64, 1/4, none")
[64.0, Fraction(1, 4), None]
"""

import math
from fractions import Fraction

from vlm.core.errors import ConfigError

Stride = float | Fraction | str | None
"""Positions of a tile, increment of a token, "model" for the checkpoint's own, None for plain counting."""

STRIDE_HELP = "V2PE stride, positions of a tile (64), or an increment of a token as in the paper (1/4), or `none`"


def read_stride(text: str | None) -> Stride:
    """Read one value; None, which nobody typed, is the checkpoint's own. Raises ConfigError."""
    if text is None:
        return "model"
    word = text.strip().lower()
    if word == "none":
        return None
    try:
        value = Fraction(word) if "/" in word else float(word)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(
            f"--stride {text}", expected="positions of a tile above 0, an increment such as 1/4, or `none`"
        )
    return value


def read_strides(text: str | None) -> list[Stride]:
    """Read a sweep, values with commas. Raises ConfigError."""
    return [read_stride(part) for part in text.split(",")] if text is not None else ["model"]


def per_tile(stride: Stride, tokens_per_tile: int | None) -> float | str | None:
    """Return positions of a tile. Raises ConfigError for an increment where the tokens of a tile are not known."""
    if not isinstance(stride, Fraction):
        return stride
    if tokens_per_tile is None:
        raise ConfigError(f"--stride {stride}, and the tokens of a tile are not known", expected="positions of a tile")
    return float(stride * tokens_per_tile)
