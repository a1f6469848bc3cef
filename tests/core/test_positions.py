import random
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.core.errors import DataError
from vlm.core.sample.positions import STRIDES, draw_strides, positions

LAYOUTS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(0, 9)),
        st.tuples(st.just("image"), st.integers(1, 4)),
    ),
    max_size=8,
)


def n_images(layout):
    return sum(kind == "image" for kind, _ in layout)


@pytest.mark.parametrize(
    ("layout", "strides", "expected"),
    [
        ([("text", 3), ("image", 2), ("text", 2)], 2, "0 1 2 3 3.5 4 4.5 5 5.5 6 6.5 7 8 9 10"),
        ([("text", 1), ("image", 1), ("image", 1)], 1, "0 1 1.25 1.5 1.75 2 3 4 4.25 4.5 4.75 5 6"),
        ([("text", 2), ("image", 1), ("image", 1), ("text", 1)], [4, 2], "0 1 2 3 4 5 6 7 8 8.5 9 9.5 10 11 12"),
    ],
)
def test_worked_examples_of_the_fact_sheet(layout, strides, expected):
    assert positions(layout, 4, strides).tolist() == [float(p) for p in expected.split()]


def test_image_end_is_the_ceiling_of_the_last_position_plus_one():
    got = positions([("text", 3), ("image", 3), ("text", 2)], 4, 0.5)
    assert got[4:].tolist() == [3 + k / 8 for k in range(1, 13)] + [6, 7, 8]


def test_stride_is_per_tile_not_per_token():
    got = positions([("image", 2)], tokens_per_tile=256, strides=64)
    assert (got[1], got[512], got[513]) == (0.25, 128, 129)


def test_budget_of_a_long_sample_of_the_fact_sheet():
    layout = [("text", 40), ("image", 13), ("text", 20)]
    ends = [positions(layout, 256, s)[-1] for s in (1, 4, 16, 64, 128, 256)]
    assert ends == [74, 113, 269, 893, 1725, 3389]


def test_one_stride_is_drawn_per_image_and_shared_by_its_tiles():
    strides = draw_strides(2, random.Random(1))
    assert strides == [4, 2]
    got = positions([("image", 3), ("image", 2)], 4, strides)
    assert np.unique(np.diff(got[:13])).tolist() == [1.0]
    assert np.unique(np.diff(got[14:23])).tolist() == [0.5]
    assert set(draw_strides(500, random.Random(0))) == set(STRIDES)


def test_without_brackets_context_follows_the_text_and_text_the_ceiling():
    got = positions([("text", 2), ("image", 1), ("text", 2)], 4, 1, brackets=False)
    assert got.tolist() == [0, 1, 1.25, 1.5, 1.75, 2, 3, 4]


def test_float32_rule_rounds_where_published_code_does():
    layout = [("text", 120_000), ("image", 1)]
    exact, rounded = (positions(layout, 256, 1, float32_rule=rule) for rule in (False, True))
    assert len(np.unique(exact)) == len(exact)
    assert len(np.unique(rounded)) < len(rounded)
    assert (rounded == exact.astype(np.float32)).all()


def test_a_million_tokens_keep_every_visual_token_apart_and_are_fast():
    layout = [("text", 100), ("image", 13)] * 312 + [("text", 100)]
    started = time.perf_counter()
    got = positions(layout, 256, 1)
    assert time.perf_counter() - started < 1
    assert got.dtype == np.float64 and len(got) > 1_060_000
    assert (np.diff(got) > 0).all()


@given(LAYOUTS, st.booleans())
def test_stride_equal_to_tokens_per_tile_is_arange(layout, brackets):
    for tokens in (1, 4, 9, 256):
        got = positions(layout, tokens, tokens, brackets=brackets)
        plain = positions(layout, tokens, None, brackets=brackets)
        np.testing.assert_allclose(got, plain, rtol=1e-15)
        assert plain.tolist() == list(range(len(plain)))


@given(LAYOUTS, st.randoms(use_true_random=False))
def test_positions_rise_and_each_image_spans_its_stride_times_tiles(layout, rng):
    strides = draw_strides(n_images(layout), rng)
    got = positions(layout, 4, strides)
    assert all(a < b for a, b in pairwise(got))
    at, remaining = 0, iter(strides)
    for kind, count in layout:
        n = count if kind == "text" else 4 * count + 2
        if kind == "image":
            assert got[at + n - 1] - got[at] == next(remaining) * count + 1
        at += n


@pytest.mark.parametrize(
    ("layout", "strides", "message"),
    [
        ([("image", 1)], [1, 2], "2 strides for 1 images"),
        ([("image", 1)], 0, "not all positive"),
        ([("image", 0)], 1, "bad layout item"),
        ([("video", 1)], None, "bad layout item"),
        ([("text", -1)], None, "bad layout item"),
    ],
)
def test_bad_input_is_refused_with_what_was_found(layout, strides, message):
    with pytest.raises(DataError, match=message):
        positions(layout, 4, strides)
