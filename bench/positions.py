"""V2PE positions of a whole sample at once, against a loop over its tokens; 27 thousand to a million tokens, stride 1.

The peer follows the published rule token by token and rounds to float32, as published. Equal values where float32 is
exact. Companion: distinct positions in float64, float32 and bfloat16, and the largest error of a rotary phase
(head size 128, theta 1e6) that float32 positions and frequencies make, in radians.
"""

import math

import numpy as np
from harness import paired, report

from vlm.core.sample.positions import Layout, positions

TOKENS, STRIDE = 256, 1


def token_by_token(layout: Layout) -> np.ndarray:
    """The published rule as it is described: float32 [n]."""
    found: list[float] = []
    last = -1.0
    for kind, count in layout:
        if kind == "text":
            for _ in range(count):
                last += 1
                found.append(last)
            continue
        start = last + 1
        found.append(start)
        for k in range(1, count * TOKENS + 1):
            found.append(start + k * STRIDE / TOKENS)
        last = math.ceil(found[-1]) + 1
        found.append(last)
    return np.array(found, np.float32)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16 (nearest, ties to even), as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def phase_error(exact: np.ndarray) -> float:
    """Largest difference of float32 phases from float64 ones, over all frequencies."""
    rounded, worst = exact.astype(np.float32), 0.0
    for i in range(0, 128, 2):
        frequency = 1e6 ** -(i / 128)
        worst = max(worst, float(np.abs(rounded * np.float32(frequency) - exact * frequency).max()))
    return worst


def main() -> None:
    rows = []
    for images in (8, 78, 309):
        layout = [("text", 100), ("image", 13)] * images + [("text", 100)]
        exact, peer = positions(layout, TOKENS, STRIDE), token_by_token(layout)
        # below 65,536 every multiple of 1/256 is a float32; above it both are the nearest one
        assert np.array_equal(exact.astype(np.float32), peer)
        fits = exact < 65_536
        assert np.array_equal(exact[fits], peer[fits].astype(np.float64))
        row = {
            "tokens": len(exact),
            "last_position": exact[-1],
            "distinct_float64": len(np.unique(exact)),
            "distinct_float32": len(np.unique(peer)),
            "distinct_bfloat16": len(np.unique(bfloat16(exact))),
            "max_phase_error_float32_rad": phase_error(exact),
            **paired(lambda at=layout: positions(at, TOKENS, STRIDE), lambda at=layout: token_by_token(at), 15),
        }
        rows.append(row)
    # the same images behind 120,000 and a million tokens of text: where float32 runs out
    for before in (120_000, 1_000_000):
        layout = [("text", before), ("image", 13)]
        exact = positions(layout, TOKENS, STRIDE)
        rows.append(
            {
                "tokens": len(exact),
                "last_position": exact[-1],
                "distinct_float64": len(np.unique(exact)),
                "distinct_float32": len(np.unique(exact.astype(np.float32))),
                "distinct_bfloat16": len(np.unique(bfloat16(exact))),
                "max_phase_error_float32_rad": phase_error(exact),
            }
        )
    report("positions", rows)


if __name__ == "__main__":
    main()
