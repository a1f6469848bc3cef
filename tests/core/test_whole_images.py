"""Whole images: each side the nearest multiple of a cell, within a budget of tokens, without padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vlm.core.errors import DataError
from vlm.core.sample.tiling import CLIP, ImageRule, whole_grid


def rule(**changes) -> ImageRule:
    return ImageRule(kind="whole", size=64, mean=CLIP[0], std=CLIP[1], **{"max_tiles": 144, **changes})


@pytest.mark.parametrize(
    "size, grid",
    [
        ((640, 480), (10, 8)),  # 480 / 64 = 7.5: Python rounds halves to even
        ((1, 1), (1, 1)),
        ((31, 97), (1, 2)),
        ((768, 768), (12, 12)),
        ((1920, 1080), (16, 9)),
        ((9000, 9000), (12, 12)),
        ((1, 4000), (1, 62)),
        ((4000, 1), (62, 1)),
        ((1, 60_000), (1, 144)),
        ((100, 20_000), (1, 144)),
    ],
)
def test_a_picture_gets_the_nearest_multiples_within_the_budget(size, grid):
    assert rule().plan(*size).grid == grid
    assert rule().count(*size) == grid[0] * grid[1]
    assert rule().plan(*size).resized == (64 * grid[0], 64 * grid[1])


SIDES = st.one_of(st.integers(1, 200), st.integers(1, 100_000))


@given(SIDES, SIDES, st.integers(1, 4096), st.integers(1, 4096))
def test_no_picture_exceeds_the_budget(width, height, one, other):
    least, most = sorted((one, other))
    columns, rows = whole_grid(width, height, 64, least, most)
    assert columns >= 1 and rows >= 1 and columns * rows <= most


@given(st.integers(64, 8000), st.integers(64, 8000), st.integers(64, 2000))
def test_the_aspect_ratio_is_kept_but_for_the_rounding_to_cells(width, height, most):
    columns, rows = whole_grid(width, height, 64, 1, most)
    if columns > 1 and rows > 1:  # a side is at most one cell from the one that keeps it
        assert (columns - 1) / (rows + 1) <= width / height <= (columns + 1) / (rows - 1 or 1e-9)
    assert columns <= round(width / 64) + (width % 64 == 32) and rows <= round(height / 64) + (height % 64 == 32)


@given(st.integers(64, 6000), st.integers(64, 6000))
def test_a_large_picture_uses_most_of_the_budget(width, height):
    columns, rows = whole_grid(width, height, 64, 1, 144)
    if round(width / 64) * round(height / 64) > 144 and max(width, height) < 4 * min(width, height):
        assert columns * rows > 144 * 0.75


def test_a_small_picture_is_enlarged_to_the_least_number_of_tokens():
    assert rule(min_tiles=36).plan(20, 20).grid == (6, 6)
    assert rule(min_tiles=36, max_tiles=36).plan(20, 20).grid == (6, 6)
    columns, rows = rule(min_tiles=36).plan(30, 10).grid
    assert 36 <= columns * rows <= 144 and 2 <= columns / rows <= 4


def test_the_cells_of_a_picture_are_the_resized_picture_without_padding():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8))
    cells = rule().apply(picture)
    assert cells.shape == (8 * 5, 64, 64, 3)
    whole = cells.reshape(5, 8, 64, 64, 3).swapaxes(1, 2).reshape(320, 512, 3)
    assert np.array_equal(whole, np.asarray(picture.resize((512, 320), Image.Resampling.BICUBIC)))
    fast = rule(resize="fast").apply(picture)
    assert fast.shape == cells.shape and np.abs(fast.astype(int) - cells).max() <= 16


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (50_000, 2)])
def test_extreme_pictures_take_bounded_memory(size):
    cells = rule().apply(Image.new("RGB", size, "red"))
    assert 1 <= len(cells) <= 144 and (cells == [255, 0, 0]).all()


def test_an_empty_picture_is_refused():
    with pytest.raises(DataError, match="0x5"):
        rule().plan(0, 5)


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="min_tiles 200 is above max_tiles 144"):
        rule(min_tiles=200)
