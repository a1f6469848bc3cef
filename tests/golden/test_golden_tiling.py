"""Grids, tiles and normalized pixels against those of the published code."""

import hashlib
from typing import Any

import numpy as np
import pytest
from golden.fixtures import Entry, Fixtures
from golden.formulas import picture
from PIL import Image
from safetensors import safe_open

from vlm.core.sample.tiling import CLIP, HALF, IMAGENET, ImageRule, cut_tiles, grids, plan_tiles

# InternVL writes CLIP's statistics with fewer digits than CLIP's own processor (which ConvLLaVA uses)
CLIP_ROUNDED = ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711))
STATISTICS = {"imagenet": IMAGENET, "clip": CLIP_ROUNDED, "siglip": HALF}
RULES = {"tiles": "tiles", "single_resize": "square", "pad2square": "pad"}
CONVLLAVA_RULES = {"pad": "pad", "square": "crop"}


def generated(entry: Entry) -> Image.Image:
    """The image of an entry's formula; an entry with only the name of a pattern takes it from its file."""
    case = entry.case
    formulas = {
        other["pattern"]: other["formula"]
        for section in entry.head.values()
        if isinstance(section, list)
        for other in section
        if isinstance(other, dict) and {"pattern", "formula"} <= other.keys()
    }
    formula: str | None = case.get("formula") or formulas.get(case["pattern"])
    assert formula, f"{entry.path}: pattern {case['pattern']!r} has no formula; found {sorted(formulas)}"
    return picture(formula, case["width"], case["height"])


def rule_of(table: dict[str, str], name: str) -> Any:
    """Our kind of image rule under a published name."""
    assert name in table, f"{name!r} is not known; known: {sorted(table)}"
    return table[name]


def recorded(found: Fixtures, entry: Entry, name: str) -> np.ndarray | None:
    """The full tensor of that name from the nearest file that holds it."""
    for path in found.tensor_files(entry):
        with safe_open(path, "np") as tensors:
            if name in tensors.keys():  # noqa: SIM118
                array: np.ndarray = tensors.get_tensor(name)
                return array
    return None


def check(got: np.ndarray, variant: dict[str, Any], full: np.ndarray | None) -> None:
    """Shape, statistics and, where the tensors are at hand, every value to 1e-6."""
    unknown = variant.keys() - {"shape", "mean_per_channel", "std", "abs_sum", "first_pixel", "sha256_float32"}
    assert not unknown, f"unknown statistics {sorted(unknown)}"
    assert list(got.shape) == variant["shape"] and got.dtype == np.float32
    np.testing.assert_allclose(got.mean((0, 2, 3), dtype=np.float64), variant["mean_per_channel"], atol=1e-6)
    np.testing.assert_allclose(np.abs(got).sum(dtype=np.float64), variant["abs_sum"], rtol=1e-6)
    np.testing.assert_allclose(got[0, :, 0, 0], variant["first_pixel"], atol=1e-6)
    if full is not None:
        np.testing.assert_allclose(got, full, atol=1e-6)


@pytest.mark.cases("tiling/cases")
def test_grid_boxes_and_thumbnail_equal_the_published_ones(entry: Entry) -> None:
    case = entry.case
    plan = plan_tiles(
        case["width"], case["height"], case["min_num"], case["max_num"], case["image_size"], case["use_thumbnail"]
    )
    assert plan.grid == tuple(case["grid"])
    assert plan.n_tiles == case["num_tiles"]
    assert plan.thumbnail == case["thumbnail"]
    assert plan.resized == tuple(case["resized_to"])
    assert [list(box) for box in plan.boxes] == case["boxes"]


@pytest.mark.cases("tiling/candidate_order")
def test_candidates_come_in_the_published_order(entry: Entry) -> None:
    low, high = map(int, entry.case["id"].split(","))
    assert [list(grid) for grid in grids(low, high)] == entry.value


@pytest.mark.cases("tiling/images")
def test_tiles_are_equal_to_the_byte_and_normalized_to_1e_6(entry: Entry, found: Fixtures) -> None:
    case, image = entry.case, generated(entry)
    assert hashlib.sha256(image.tobytes()).hexdigest() == case["rgb_sha256"]
    size, low, high = case["image_size"], case["min_num"], case["max_num"]
    plan = plan_tiles(*image.size, low, high, size, case["use_thumbnail"])
    tiles = cut_tiles(image, plan)
    assert len(tiles) == case["num_tiles"]
    assert [hashlib.sha256(tile.tobytes()).hexdigest() for tile in tiles] == case["tile_uint8_sha256"]
    if (full := recorded(found, entry, f"{case['id']}.tiles_uint8")) is not None:
        np.testing.assert_array_equal(np.stack([np.asarray(tile) for tile in tiles]), full)
    for name, variant in case["variants"].items():
        kind, _, statistics = name.rpartition("_")
        mean, std = STATISTICS[rule_of({key: key for key in STATISTICS}, statistics)]
        rule = ImageRule(
            kind=rule_of(RULES, kind),
            size=size,
            min_tiles=low,
            max_tiles=high,
            thumbnail=case["use_thumbnail"],
            mean=mean,
            std=std,
        )
        got = rule.apply(image)
        assert len(got) == rule.count(*image.size)
        check(rule.normalize(got), variant, recorded(found, entry, f"{case['id']}.{name}"))


@pytest.mark.cases("tiling/convllava_images")
def test_convllava_padding_and_center_crop(entry: Entry, found: Fixtures) -> None:
    case, image = entry.case, generated(entry)
    for name, variant in case["variants"].items():
        rule = ImageRule(kind=rule_of(CONVLLAVA_RULES, name), size=case["resolution"], mean=CLIP[0], std=CLIP[1])
        got = rule.normalize(rule.apply(image))
        check(got, variant, recorded(found, entry, f"convllava.{case['id']}.{name}"))


@pytest.mark.cases("tiling/images", per="file")
def test_every_recorded_tensor_belongs_to_a_picture(entry: Entry, found: Fixtures) -> None:
    images = found.entries["tiling/images"]
    names = {f"{e.case['id']}.{name}" for e in images for name in [*e.case["variants"], "tiles_uint8"]}
    convllava = found.entries["tiling/convllava_images"]
    names |= {f"convllava.{e.case['id']}.{name}" for e in convllava for name in e.case["variants"]}
    for path in found.tensor_files(entry):
        with safe_open(path, "np") as tensors:
            assert set(tensors.keys()) <= names, path
