"""Grids, tiles and normalised pixels against those of the published code."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vlm.core.sample.tiling import CLIP, HALF, IMAGENET, ImageRule, cut_tiles, grids, plan_tiles

# InternVL writes CLIP's statistics with fewer digits than CLIP's own processor (which ConvLLaVA uses)
CLIP_ROUNDED = ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711))


def generated(pattern: str, w: int, h: int) -> Image.Image:
    """The image of a formula in tiling.json."""
    y, x = np.mgrid[:h, :w].astype(np.int64)
    if pattern == "gradient":
        channels = (x * 255 // max(w - 1, 1), y * 255 // max(h - 1, 1), (x + y) * 255 // max(w + h - 2, 1))
    elif pattern == "checker":
        m = (x // 7 + y // 5) % 2
        channels = (40 + 180 * m, 200 - 150 * m, (x * 3 + y * 5) % 256)
    else:
        assert pattern == "rings"
        d = (x - w // 2) ** 2 + (y - h // 3) ** 2
        channels = (d // 17 % 256, d // 5 % 256, x * y % 256)
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def check(got: np.ndarray, variant: dict, full: np.ndarray | None) -> None:
    """Shape, statistics and, where the tensors are at hand, every value to 1e-6."""
    assert list(got.shape) == variant["shape"] and got.dtype == np.float32
    np.testing.assert_allclose(got.mean((0, 2, 3), dtype=np.float64), variant["mean_per_channel"], atol=1e-6)
    np.testing.assert_allclose(np.abs(got).sum(dtype=np.float64), variant["abs_sum"], rtol=1e-6)
    np.testing.assert_allclose(got[0, :, 0, 0], variant["first_pixel"], atol=1e-6)
    if full is not None:
        np.testing.assert_allclose(got, full, atol=1e-6)


@pytest.fixture(scope="module")
def tensors(golden) -> dict[str, np.ndarray]:
    path = golden / "tiling_tensors.safetensors"
    return load_file(path) if path.is_file() else {}


@pytest.mark.cases("tiling.json", "cases")
def test_grid_boxes_and_thumbnail_equal_the_published_ones(case):
    plan = plan_tiles(
        case["width"], case["height"], case["min_num"], case["max_num"], case["image_size"], case["use_thumbnail"]
    )
    assert plan.grid == tuple(case["grid"])
    assert plan.n_tiles == case["num_tiles"]
    assert plan.thumbnail == case["thumbnail"]
    assert plan.resized == tuple(case["resized_to"])
    assert [list(box) for box in plan.boxes] == case["boxes"]


@pytest.mark.cases("tiling.json", "candidate_order")
def test_candidates_come_in_the_published_order(case):
    low, high = map(int, case["id"].split(","))
    assert [list(grid) for grid in grids(low, high)] == case["value"]


@pytest.mark.cases("tiling.json", "images")
def test_tiles_are_equal_to_the_byte_and_normalised_to_1e_6(case, tensors):
    image = generated(case["pattern"], case["width"], case["height"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == case["rgb_sha256"]
    size, low, high = case["image_size"], case["min_num"], case["max_num"]
    plan = plan_tiles(*image.size, low, high, size, case["use_thumbnail"])
    tiles = cut_tiles(image, plan)
    assert len(tiles) == case["num_tiles"]
    assert [hashlib.sha256(tile.tobytes()).hexdigest() for tile in tiles] == case["tile_uint8_sha256"]
    for name, variant in case["variants"].items():
        kind, statistics = name.rsplit("_", 1)
        mean, std = {"imagenet": IMAGENET, "clip": CLIP_ROUNDED, "siglip": HALF}[statistics]
        rule = ImageRule(
            kind={"tiles": "tiles", "single_resize": "square", "pad2square": "pad"}[kind],
            size=size,
            min_tiles=low,
            max_tiles=high,
            thumbnail=case["use_thumbnail"],
            mean=mean,
            std=std,
        )
        got = rule.apply(image)
        assert len(got) == rule.count(*image.size)
        check(rule.normalise(got), variant, tensors.get(f"{case['id']}.{name}"))


@pytest.mark.cases("tiling.json", "convllava_images")
def test_convllava_padding_and_centre_crop(case, tensors):
    image = generated(case["pattern"], case["width"], case["height"])
    for name, kind in {"pad": "pad", "square": "crop"}.items():
        rule = ImageRule(kind=kind, size=case["resolution"], mean=CLIP[0], std=CLIP[1])
        got = rule.normalise(rule.apply(image))
        check(got, case["variants"][name], tensors.get(f"convllava.{case['id']}.{name}"))


def test_every_published_file_key_is_checked(golden):
    path = golden / "tiling.json"
    if not path.is_file():
        pytest.skip("this folder has no tiling.json")
    lists = {key for key, value in json.loads(path.read_text()).items() if isinstance(value, list | dict)}
    assert lists <= {"candidate_order", "cases", "images", "convllava_images"}
