"""An image as the square tiles an encoder takes: dynamic tiles, one square, a padded square, a center crop or cells."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from vlm.core.config import Strict, parse
from vlm.core.errors import ConfigError, DataError

Channel = Annotated[float, Field(allow_inf_nan=False)]
Color = tuple[Channel, Channel, Channel]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]
IMAGENET: tuple[Color, Color] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[Color, Color] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: tuple[Color, Color] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation per channel, of values in 0..1."""


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut into tiles.

    `grid` is (columns, rows), `resized` (width, height), `boxes` are (left, top, right, bottom) in the resized image,
    row by row; with `thumbnail` the whole image follows as the last tile.

    >>> plan_tiles(1000, 500).grid
    (2, 1)
    """

    grid: tuple[int, int]
    boxes: tuple[tuple[int, int, int, int], ...]
    resized: tuple[int, int]
    thumbnail: bool
    tile_size: int

    @property
    def n_tiles(self) -> int:
        """Number of tiles, the thumbnail included."""
        return len(self.boxes) + self.thumbnail


@lru_cache
def grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Return all (columns, rows) with `min_tiles <= columns * rows <= max_tiles`, in the published order.

    The published code sorts a set by area, so grids of equal area keep the iteration order of that set (in CPython a
    function of the numbers alone). With `min_tiles` > 1 two of them can be equally close to an image: the order counts.
    """
    # the published loop goes over all columns and rows up to each area again; only what is new can change the set
    found = {
        (columns, rows)
        for area in range(min_tiles, max_tiles + 1)
        for columns in range(1, area + 1)
        for rows in range(area if min_tiles < area != columns else 1, min(area, max_tiles // columns) + 1)
        if columns * rows >= min_tiles
    }
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


@lru_cache(maxsize=1 << 14)
def plan_tiles(
    width: int,
    height: int,
    min_tiles: int = 1,
    max_tiles: int = 12,
    tile_size: int = 448,
    thumbnail: bool = True,
) -> TilePlan:
    """Return the grid whose aspect ratio is nearest to the image's, from its size in pixels alone.

    On an exact tie a later (larger) grid wins when the image has more than half of its pixels. A thumbnail is added
    when there is more than one tile. Source: published `dynamic_preprocess` (OpenGVLab/V2PE).

    Raises:
        DataError: The image is empty, or the limits leave no grid.

    >>> plan_tiles(1920, 1080).grid, plan_tiles(1920, 1080).n_tiles
    ((4, 2), 9)
    """
    if width < 1 or height < 1:
        raise DataError(f"image of {width}x{height} pixels", expected="at least 1x1")
    candidates = grids(min_tiles, max_tiles)
    if not candidates:
        raise DataError(f"no grid has {min_tiles} to {max_tiles} tiles", expected="1 <= min_tiles <= max_tiles")
    best, nearest = (1, 1), float("inf")
    for grid in candidates:
        distance = abs(width / height - grid[0] / grid[1])
        if distance < nearest:
            best, nearest = grid, distance
        elif distance == nearest and width * height > 0.5 * tile_size * tile_size * grid[0] * grid[1]:
            best = grid
    columns, rows = best
    boxes = tuple(
        (x * tile_size, y * tile_size, (x + 1) * tile_size, (y + 1) * tile_size)
        for y in range(rows)
        for x in range(columns)
    )
    return TilePlan(best, boxes, (columns * tile_size, rows * tile_size), thumbnail and len(boxes) > 1, tile_size)


def cut_tiles(image: Image.Image, plan: TilePlan) -> list[Image.Image]:
    """Return the tiles of an RGB image: resized as a whole (bicubic, aspect ignored), cut row by row, thumbnail last.

    The thumbnail is made in a second thread: Pillow works without the interpreter's lock.
    """
    image.load()
    with ThreadPoolExecutor(1) as beside:
        thumbnail = beside.submit(_square, image, plan.tile_size) if plan.thumbnail else None
        resized = image.resize(plan.resized, Image.Resampling.BICUBIC)
        tiles = [resized.crop(box) for box in plan.boxes]
        return [*tiles, thumbnail.result()] if thumbnail else tiles


def whole_grid(width: int, height: int, size: int, min_cells: int, max_cells: int) -> tuple[int, int]:
    """Return the (columns, rows) of cells of `size` pixels whose rectangle is nearest to an image's.

    Each side goes to its nearest multiple of `size`, at least one cell. Where that makes more than `max_cells`, or less
    than `min_cells`, the image is first scaled to that area with its aspect ratio, which then decides between the
    roundings of a side. A side is cut short only where the other one is a single cell. Ours: ConvLLaVA's paper names
    arbitrary aspect ratios, its code pads.

    Raises:
        DataError: The image is empty.

    >>> whole_grid(1024, 768, 64, 1, 576), whole_grid(4000, 3000, 64, 1, 576), whole_grid(1, 4000, 64, 1, 576)
    ((16, 12), (27, 21), (1, 62))
    """
    if width < 1 or height < 1:
        raise DataError(f"image of {width}x{height} pixels", expected="at least 1x1")
    nearest = max(1, round(width / size)), max(1, round(height / size))
    if min_cells <= nearest[0] * nearest[1] <= max_cells:
        return nearest
    shrink = nearest[0] * nearest[1] > max_cells
    area = max_cells if shrink else min_cells
    columns = min(max(1.0, math.sqrt(area * width / height)), float(area))  # of that area, before rounding
    rows = area / columns
    if shrink:  # a side that is one cell leaves room in the budget: the other one is not made larger to fill it
        columns, rows = min(columns, nearest[0]), min(rows, nearest[1])
    fitting = [
        (c, r)
        for c in {max(1, math.floor(columns)), math.ceil(columns)}
        for r in {max(1, math.floor(rows)), math.ceil(rows)}
        if min_cells <= c * r <= max_cells
    ]
    if not fitting:  # no rounding lies between the limits: the greater one holds
        fitting = [(max(1, math.floor(columns)), max(1, math.floor(rows)))]
    return min(fitting, key=lambda g: (abs(math.log(g[0] * height / (g[1] * width))), -g[0] * g[1], g))


FAST = "vlm.models.vision.resize:cut_tiles"
"""Import string of the fast path. It needs torch, which core does not import."""


def fast_path() -> Callable[[np.ndarray, TilePlan], np.ndarray]:
    """Return the fast path, `cut(uint8 [h, w, 3], plan)` -> uint8 [tiles, size, size, 3].

    Raises:
        ConfigError: The package farlens-models is not installed.
    """
    module, name = FAST.split(":")
    if find_spec("vlm.models") is None:
        raise ConfigError(
            "image rule `resize: fast` without the package farlens-models",
            fix="pip install farlens-models, or `resize: published`",
        )
    cut: Callable[[np.ndarray, TilePlan], np.ndarray] = getattr(import_module(module), name)
    return cut


class ImageRule(Strict):
    """How a family turns an image into tiles. `size` is the side of a tile in pixels.

    - `tiles`: dynamic tiles and thumbnail (InternVL2, V2PE)
    - `square`: resized to one square, aspect ignored (InternVL-Chat-V1-2)
    - `pad`: pasted in the middle of a square of the mean color, then resized (ConvLLaVA)
    - `whole`: the whole image with its aspect ratio, without padding (ours, for ConvLLaVA): each side is resized to the
      nearest multiple of `size`, the side of one token, and cut into cells of that size, row by row. `max_tiles` and
      `min_tiles` count these cells: they are the budget in tokens.
    - `crop`: shortest edge resized to `size`, then the center cut out (ConvLLaVA without `pad`)

    `resize`: `published` gives the bytes of Pillow's bicubic; `fast` (ours, opt-in; for `tiles`, `square` and `whole`)
    is torch's on uint8 pixels: several times faster, some bytes differ by a few units. An evaluation records the rule.

    >>> ImageRule(kind="tiles", size=448).count(1920, 1080)
    9
    """

    kind: Literal["tiles", "square", "pad", "crop", "whole"]
    size: int = Field(gt=0, le=8192)
    max_tiles: int = Field(default=12, ge=1, le=4096)
    min_tiles: int = Field(default=1, ge=1)
    thumbnail: bool = True
    resize: Literal["published", "fast"] = "published"
    mean: Color = IMAGENET[0]
    std: tuple[Spread, Spread, Spread] = IMAGENET[1]

    @model_validator(mode="after")
    def _limits(self) -> "ImageRule":
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is above max_tiles {self.max_tiles}")
        if self.resize == "fast" and self.kind in ("pad", "crop"):
            raise ValueError(f"resize `fast` with kind `{self.kind}`: it is for `tiles`, `square` and `whole`")
        return self

    @property
    def limited(self) -> bool:
        """Whether `max_tiles` limits an image."""
        return self.kind in ("tiles", "whole")

    @property
    def most_tiles(self) -> int:
        """Most tiles of an image, its thumbnail included; under `whole` most cells."""
        if self.kind == "tiles":
            return self.max_tiles + (self.thumbnail and self.max_tiles > 1)
        return self.max_tiles if self.kind == "whole" else 1

    def changed(self, **changes: object) -> "ImageRule":
        """Return the rule with other values, e.g. `rule.changed(max_tiles=24)`. Raises ConfigError."""
        return parse({**self.model_dump(), **changes}, ImageRule, where="image rule")

    def plan(self, width: int, height: int) -> TilePlan:
        """Return the tile plan of an image of that size in pixels; one box for kinds other than `tiles` and `whole`.

        Raises:
            DataError: The rule cannot cut an image of that size.
        """
        if self.kind == "crop":
            cropped_from(width, height, self.size)
        if self.kind == "whole":
            return _whole_plan(width, height, self.size, self.min_tiles, self.max_tiles)
        if self.kind != "tiles":
            return TilePlan((1, 1), ((0, 0, self.size, self.size),), (self.size, self.size), False, self.size)
        return plan_tiles(width, height, self.min_tiles, self.max_tiles, self.size, self.thumbnail)

    def count(self, width: int, height: int) -> int:
        """Return the number of tiles of an image of that size in pixels, without decoding it."""
        return self.plan(width, height).n_tiles

    def apply(self, image: Image.Image) -> np.ndarray:
        """Return the tiles of an RGB image, uint8 [tiles, size, size, 3]."""
        if self.resize == "fast":
            return fast_path()(np.array(image), self.plan(*image.size))
        match self.kind:
            case "tiles" | "whole":
                tiles = cut_tiles(image, self.plan(*image.size))
            case "pad":
                tiles = [padded_square(image, self.size, self.mean)]
            case "crop":
                tiles = [center_crop(image, self.size)]
            case "square":
                tiles = [_square(image, self.size)]
        return np.stack([np.asarray(tile) for tile in tiles])

    def normalize(self, tiles: np.ndarray) -> np.ndarray:
        """Return uint8 [tiles, size, size, 3] as float32 [tiles, 3, size, size]: (value / 255 - mean) / std."""
        planes = np.empty((len(tiles), 3, *tiles.shape[1:3]), np.float32)
        for tile, out in zip(tiles, planes, strict=True):  # plane by plane: the working set stays in the cache
            for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
                np.divide(tile[..., channel], np.float32(255), out=out[channel])
                out[channel] -= np.float32(mean)
                out[channel] /= np.float32(std)
        return planes


@lru_cache(maxsize=1 << 14)
def _whole_plan(width: int, height: int, size: int, min_cells: int, max_cells: int) -> TilePlan:
    columns, rows = whole_grid(width, height, size, min_cells, max_cells)
    boxes = tuple((x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(rows) for x in range(columns))
    return TilePlan((columns, rows), boxes, (columns * size, rows * size), False, size)


def _square(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


STRIP = 256
"""Rows of a padded square that are in memory at once."""


def padded_square(image: Image.Image, size: int, mean: Color) -> Image.Image:
    """Return the image in the middle of a square of color int(255 * mean), the offset rounded down, resized to `size`.

    Pillow resizes rows, then columns, each rounded to bytes. Done strip by strip the result is the same, and a picture
    of 50,000 x 10 pixels needs no square of 7.5 GB.
    """
    side, color = max(image.size), tuple(int(255 * channel) for channel in mean)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (size, side), color)
    for first in range(top, top + image.height, STRIP):
        strip = Image.new("RGB", (side, min(STRIP, top + image.height - first)), color)
        strip.paste(image, (left, top - first))
        narrow.paste(strip.resize((size, strip.height), Image.Resampling.BICUBIC), (0, first))
    return _square(narrow, size)


def cropped_from(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the (width, height) to which an image is resized before its middle is cut out.

    Raises:
        DataError: It would have more pixels than Pillow reads.
    """
    short = min(width, height)
    wide, high = (int(size * edge / short) for edge in (width, height))
    if wide * high > (Image.MAX_IMAGE_PIXELS or 0):
        raise DataError(
            f"an image of {width}x{height} pixels would be resized to {wide}x{high}, then cropped",
            expected=f"at most {Image.MAX_IMAGE_PIXELS:,} pixels",
            fix="crop the picture, or pad it instead (image rule `pad`)",
        )
    return wide, high


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the middle `size` x `size` pixels after resizing the shortest edge to `size` (CLIP's processor).

    Raises:
        DataError: The resized image would have more pixels than Pillow reads.
    """
    width, height = cropped_from(*image.size, size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
