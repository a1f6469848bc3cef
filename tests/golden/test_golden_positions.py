"""Positions against those that the published code computed."""

import random
from fractions import Fraction
from itertools import accumulate
from math import ceil
from typing import Any

import numpy as np
import pytest
from golden.decisions import decide
from golden.fixtures import Entry

from vlm.core.sample.positions import Layout, draw_strides, positions


def recorded(case: dict[str, Any]) -> np.ndarray:
    if "positions" in case:
        return np.array(case["positions"])
    return np.concatenate([first + step * np.arange(count) for first, step, count in case["runs"]])


def exact(layout: Layout, tokens_per_tile: int, stride: float) -> list[Fraction]:
    """The rule in rational numbers, token by token."""
    out, last = [], Fraction(-1)
    for kind, count in layout:
        if kind == "text":
            out += [last + k for k in range(1, count + 1)]
            last += count
        else:
            start = last + 1
            increment = Fraction(stride) / tokens_per_tile
            context = [start + k * increment for k in range(1, count * tokens_per_tile + 1)]
            last = Fraction(ceil(context[-1]) + 1)
            out += [start, *context, last]
    return out


def strides_of(case: dict[str, Any], layout: Layout, seed: int | None, drawn: list[float] | None) -> Any:
    """The strides of one sample; those drawn at random are drawn again from the recorded seed."""
    match case["version"]:
        case "default":
            return None
        case "v2pe_fix":
            return case["stride"]
        case "v2pe_rnd":
            strides = draw_strides(sum(kind == "image" for kind, _ in layout), random.Random(seed))
            assert strides == drawn
            return strides
    pytest.fail(f"version {case['version']!r} is not known")


def computed(case: dict[str, Any]) -> np.ndarray:
    """Our positions of a sample, or of the samples of a packed row one behind the other."""
    tokens, float32 = case["num_image_token"], "float32" in case["dtype"]
    if "samples" not in case:
        strides = strides_of(case, case["layout"], case.get("python_random_seed"), case.get("drawn_strides"))
        return positions(case["layout"], tokens, strides, float32_rule=float32)
    none = [None] * len(case["samples"])
    seeds, drawn = case.get("python_random_seeds") or none, case.get("drawn_strides") or none
    # a row that also holds text is wider than float32, its positions are not
    parts = [
        positions(layout, tokens, strides_of(case, layout, *random_state), float32_rule=True)
        for layout, *random_state in zip(case["samples"], seeds, drawn, strict=True)
    ]
    assert [0, *accumulate(map(len, parts))] == case["cu_seqlens"]
    return np.concatenate(parts)


@pytest.mark.cases("positions/cases")
def test_positions_equal_the_published_ones(entry: Entry) -> None:
    case = entry.case
    decision = decide("positions/cases", case)
    tokens = case["num_image_token"]
    if decision is None or decision.ours == "last bits":
        got, want = computed(case), recorded(case)
        np.testing.assert_allclose(got, want, rtol=2**-23 if decision else 0)
        assert got.sum() == pytest.approx(case.get("sum_float64", got.sum()), rel=2**-23 if decision else 0, abs=0)
        assert got[-1] == pytest.approx(case.get("last_position", got[-1]), rel=2**-23 if decision else 0, abs=0)
        assert len(got) == case.get("num_tokens", len(got))
        return
    layouts = case["samples"] if "samples" in case else [case["layout"]]
    for layout in layouts:
        if decision.ours == "exact rule":
            got = positions(layout, tokens, case["stride"])
            rational = [float(p) for p in exact(layout, tokens, case["stride"])]
            np.testing.assert_allclose(got, rational, rtol=3e-16)
        elif decision.ours == "no version":
            np.testing.assert_array_equal(positions(layout, tokens, None), range(len(exact(layout, tokens, 1))))
        else:
            assert decision.ours == "no mask"
            got, kept = computed(case), case["num_tokens"] - case["masked_tail"]
            np.testing.assert_array_equal(got[:kept], recorded(case)[:kept])
            np.testing.assert_array_equal(np.diff(got[kept - 1 :]), 1)
