"""Positions against those that the published code computed."""

import random
from fractions import Fraction
from itertools import accumulate
from math import ceil

import numpy as np
import pytest

from vlm.core.sample.positions import draw_strides, positions


def recorded(case) -> np.ndarray:
    if "positions" in case:
        return np.array(case["positions"])
    return np.concatenate([first + step * np.arange(count) for first, step, count in case["runs"]])


def exact(layout, tokens_per_tile, stride) -> list[Fraction]:
    """The rule in rational numbers, token by token."""
    out, last = [], Fraction(-1)
    for kind, count in layout:
        if kind == "text":
            out += [last + k for k in range(1, count + 1)]
            last += count
        else:
            start = last + 1
            context = [start + Fraction(k * stride, tokens_per_tile) for k in range(1, count * tokens_per_tile + 1)]
            last = Fraction(ceil(context[-1]) + 1)
            out += [start, *context, last]
    return out


def strides_of(case, seed_key="python_random_seed"):
    if case["version"] != "v2pe_rnd":
        return case["stride"] if case["version"] == "v2pe_fix" else None
    strides = draw_strides(sum(kind == "image" for kind, _ in case["layout"]), random.Random(case[seed_key]))
    assert strides == case["drawn_strides"]
    return strides


@pytest.mark.cases("positions.json", "cases")
def test_positions_equal_the_published_ones(case, decisions):
    decision = decisions.decide("positions.json", case)
    tokens = case["num_image_token"]
    if "samples" in case:
        seeds = case["python_random_seeds"] or [None] * len(case["samples"])
        ours = [
            positions(
                layout, tokens, strides_of({**case, "layout": layout, "seed": seed, "drawn_strides": drawn}, "seed")
            )
            for layout, seed, drawn in zip(case["samples"], seeds, case["drawn_strides"] or seeds, strict=True)
        ]
        assert [0, *accumulate(map(len, ours))] == case["cu_seqlens"]
        np.testing.assert_array_equal(np.concatenate(ours), recorded(case))
    elif decision is None:
        assert "raises" not in case, "an upstream fault without a decision"
        got = positions(case["layout"], tokens, strides_of(case), float32_rule=case["dtype"] == "float32")
        np.testing.assert_array_equal(got, recorded(case))
        if "sum_float64" in case:
            assert got.sum() == case["sum_float64"]
    elif decision.ours == "exact rule":
        got = positions(case["layout"], tokens, case["stride"])
        np.testing.assert_allclose(got, [float(p) for p in exact(case["layout"], tokens, case["stride"])], rtol=3e-16)
    elif decision.ours == "no version":
        np.testing.assert_array_equal(
            positions(case["layout"], tokens, None), range(len(exact(case["layout"], tokens, 1)))
        )
    elif decision.ours == "no mask":
        got, kept = positions(case["layout"], tokens, case["stride"]), case["num_tokens"] - case["masked_tail"]
        np.testing.assert_array_equal(got[:kept], recorded(case)[:kept])
        np.testing.assert_array_equal(np.diff(got[kept - 1 :]), 1)
    else:
        assert decision.ours == "last bits"
        got = positions(case["layout"], tokens, case["stride"], float32_rule=True)
        np.testing.assert_allclose(got, recorded(case), rtol=2**-23)
