import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.tiling import CLIP, IMAGENET, ImageRule, center_crop, cut_tiles, padded_square, plan_tiles


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((633, 633), (1, 1, 1, 1)),
        ((634, 634), (1, 5, 5, 5)),
        ((672, 448), (3, 3, 7, 7)),
        ((1024, 768), (1, 5, 7, 13)),
        ((2480, 3508), (3, 3, 7, 7)),
        ((4000, 500), (4, 6, 7, 9)),
    ],
)
def test_tile_counts_of_the_fact_sheet(size, tiles):
    assert tuple(plan_tiles(*size, max_tiles=m).n_tiles for m in (3, 5, 6, 12)) == tiles


@pytest.mark.parametrize(("size", "grid"), [((50000, 10), (12, 1)), ((10, 50000), (1, 12)), ((1, 1), (1, 1))])
def test_extreme_images_have_a_grid(size, grid):
    assert plan_tiles(*size).grid == grid


def test_thumbnail_is_the_last_tile_and_shows_the_whole_image():
    image = noise(200, 100)
    tiles = cut_tiles(image, plan_tiles(200, 100, max_tiles=2, tile_size=50))
    assert len(tiles) == 3
    assert tiles[-1] == image.resize((50, 50), Image.Resampling.BICUBIC)
    assert tiles[0] == image.resize((100, 50), Image.Resampling.BICUBIC).crop((0, 0, 50, 50))


def test_a_single_tile_has_no_thumbnail():
    assert plan_tiles(448, 448).n_tiles == 1
    assert not plan_tiles(448, 448).thumbnail


@settings(deadline=None)
@given(st.integers(1, 60_000), st.integers(1, 60_000), st.integers(1, 4), st.integers(0, 20), st.booleans())
def test_tiles_stay_within_the_limits_and_cover_the_resized_image(width, height, low, more, thumbnail):
    plan = plan_tiles(width, height, low, low + more, 32, thumbnail)
    columns, rows = plan.grid
    assert low <= columns * rows <= low + more
    assert plan.n_tiles <= low + more + 1
    covered = np.zeros((rows, columns), int)
    for left, top, right, bottom in plan.boxes:
        assert (right - left, bottom - top) == (32, 32)
        covered[top // 32, left // 32] += 1
    assert (covered == 1).all() and plan.resized == (columns * 32, rows * 32)


def reference_grid(width: int, height: int, most: int) -> tuple[int, int]:
    """The rule of the fact sheet (v2pe, tiling) read once more: all grids of up to `most` tiles, fewest tiles first;
    the nearest ratio, and of equally near ones the last whose pixels the image fills by more than half."""
    by_tiles = sorted(((i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most), key=np.prod)
    i, j = np.array(by_tiles).T
    distance = abs(width / height - i / j)
    ties = np.flatnonzero(distance == distance.min())
    filled = [k for k in ties[1:] if width * height > 0.5 * 448 * 448 * i[k] * j[k]]
    best = filled[-1] if filled else ties[0]
    return int(i[best]), int(j[best])


@pytest.mark.parametrize("examples", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_grids_are_those_of_the_reference_rule(examples):
    near_ties = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 700), st.integers(-1, 1)).map(
        lambda x: (x[0] * x[2], max(1, x[1] * x[2] + x[3]))
    )

    @settings(deadline=None, max_examples=examples, database=None)
    @given(near_ties | st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), st.integers(1, 24))
    def agree(size, most):
        assert plan_tiles(*size, max_tiles=most).grid == reference_grid(*size, most)

    agree()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["tiles", "square", "pad", "crop"]))
def test_count_from_the_size_equals_the_tiles_made(width, height, kind):
    rule = ImageRule(kind=kind, size=8)
    tiles = rule.apply(Image.new("RGB", (width, height)))
    assert tiles.shape == (rule.count(width, height), 8, 8, 3) and tiles.dtype == np.uint8


def test_pad_centers_the_image_on_the_mean_color():
    padded = padded_square(Image.new("RGB", (5, 2), "white"), 5, CLIP[0])
    assert padded.size == (5, 5)
    assert padded.getpixel((0, 0)) == (122, 116, 104)
    assert [padded.getpixel((2, y)) == (255, 255, 255) for y in range(5)] == [False, True, True, False, False]


def test_crop_keeps_the_middle():
    image = Image.new("RGB", (30, 10))
    image.paste((255, 255, 255), (10, 0, 20, 10))
    assert center_crop(image, 10).getcolors() == [(100, (255, 255, 255))]


def test_white_maps_to_the_numbers_of_the_fact_sheet():
    rule = ImageRule(kind="square", size=4, mean=IMAGENET[0], std=IMAGENET[1])
    white = rule.normalize(rule.apply(Image.new("RGB", (9, 7), "white")))
    assert white.dtype == np.float32 and white.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(white[0, :, 0, 0], (2.249, 2.429, 2.640), atol=5e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(1, 90), st.integers(1, 40), st.booleans())
def test_padding_strip_by_strip_equals_one_square_resized(width, height, size, upright):
    """Strips bound the memory of a 50,000 x 10 picture; 700 pixels are several strips."""
    image = noise(height, width) if upright else noise(width, height)
    side = max(image.size)
    whole = Image.new("RGB", (side, side), tuple(int(255 * c) for c in CLIP[0]))
    whole.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    assert padded_square(image, size, CLIP[0]) == whole.resize((size, size), Image.Resampling.BICUBIC)


def test_normalizing_is_the_published_formula_bit_for_bit():
    rule = ImageRule(kind="square", size=256)
    tiles = np.arange(256, dtype=np.uint8)[None, :, None, None].repeat(256, 2).repeat(3, 3)
    mean, std = (np.array(values, np.float32) for values in IMAGENET)
    expected = (tiles.astype(np.float32) / np.float32(255) - mean) / std
    got = rule.normalize(tiles)
    assert got.flags.c_contiguous and np.array_equal(got, expected.transpose(0, 3, 1, 2))


# the fast path --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiles", "square"])
@pytest.mark.parametrize("size", [(300, 170), (90, 200), (64, 64), (31, 500)])
def test_fast_tiles_are_near_the_published_bytes(kind, size):
    """And in the same order, the thumbnail last: noise differs by far more from tile to tile."""
    published, fast = (ImageRule(kind=kind, size=56, resize=resize) for resize in ("published", "fast"))
    a, b = (rule.apply(noise(*size)).astype(int) for rule in (published, fast))
    assert a.shape == b.shape and b.shape[0] == fast.count(*size)
    assert np.abs(a - b).max() <= 5 and np.abs(a - b).mean() < 0.3


def test_fast_is_opt_in_and_part_of_the_recorded_rule():
    assert ImageRule(kind="tiles", size=56).model_dump()["resize"] == "published"
    assert ImageRule(kind="tiles", size=56, resize="fast").model_dump()["resize"] == "fast"


@pytest.mark.parametrize("kind", ["pad", "crop"])
def test_fast_is_refused_where_it_is_not_built(kind):
    with pytest.raises(ValidationError, match="it is for `tiles`, `square` and `whole`"):
        ImageRule(kind=kind, size=56, resize="fast")


def test_fast_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setattr("vlm.core.sample.tiling.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install farlens-models"):
        ImageRule(kind="tiles", size=56, resize="fast").apply(noise(9, 9))


def test_limits_that_leave_no_grid_are_refused():
    with pytest.raises(DataError, match="no grid"):
        plan_tiles(10, 10, min_tiles=3, max_tiles=2)
    with pytest.raises(DataError, match="image of 0x10"):
        plan_tiles(0, 10)
    with pytest.raises(ValidationError, match="min_tiles 3 is above max_tiles 2"):
        ImageRule(kind="tiles", size=8, min_tiles=3, max_tiles=2)
