"""An image as the square tiles an encoder takes: dynamic tiles, one square, a padded square or a centre crop."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from vlm.core.config import Strict
from vlm.core.errors import DataError

Colour = tuple[float, float, float]
IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[Colour, Colour] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: tuple[Colour, Colour] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation per channel, of values in 0..1."""


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut. `grid` is (columns, rows), `resized` (width, height), `boxes` are (left, top, right, bottom)
    in the resized image, row by row; a thumbnail of the whole image follows as the last tile."""

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
    """All (columns, rows) with `min_tiles <= columns * rows <= max_tiles`, in the published order.

    The published code sorts a set by area, so grids of equal area keep the iteration order of that set (in CPython a
    function of the numbers alone). With `min_tiles` > 1 two of them can be equally close to an image: the order counts.
    """
    found = {
        (columns, rows)
        for area in range(min_tiles, max_tiles + 1)
        for columns in range(1, area + 1)
        for rows in range(1, area + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def plan_tiles(
    width: int,
    height: int,
    min_tiles: int = 1,
    max_tiles: int = 12,
    tile_size: int = 448,
    thumbnail: bool = True,
) -> TilePlan:
    """The grid whose aspect ratio is nearest to the image's, from its size in pixels alone.

    On an exact tie a later (larger) grid wins when the image has more than half of its pixels. A thumbnail is added
    when there is more than one tile. Source: published `dynamic_preprocess` (OpenGVLab/V2PE).

    >>> plan_tiles(1920, 1080).grid, plan_tiles(1920, 1080).n_tiles
    ((4, 2), 9)

    Raises:
        DataError: an empty image, or limits that leave no grid.
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
    """The tiles of an RGB image: resized as a whole (bicubic, aspect ignored), cut row by row, thumbnail last."""
    resized = image.resize(plan.resized, Image.Resampling.BICUBIC)
    tiles = [resized.crop(box) for box in plan.boxes]
    if plan.thumbnail:
        tiles.append(image.resize((plan.tile_size, plan.tile_size), Image.Resampling.BICUBIC))
    return tiles


class ImageRule(Strict):
    """What a family does to an image. `size` is the side of a tile in pixels.

    - `tiles`: dynamic tiles and thumbnail (InternVL2, V2PE)
    - `square`: resized to one square, aspect ignored (InternVL-Chat-V1-2)
    - `pad`: pasted in the middle of a square of the mean colour, then resized (ConvLLaVA)
    - `crop`: shortest edge resized to `size`, then the centre cut out (ConvLLaVA without `pad`)
    """

    kind: Literal["tiles", "square", "pad", "crop"]
    size: int = Field(gt=0)
    max_tiles: int = Field(default=12, ge=1)
    min_tiles: int = Field(default=1, ge=1)
    thumbnail: bool = True
    mean: Colour = IMAGENET[0]
    std: Colour = IMAGENET[1]

    @model_validator(mode="after")
    def _limits(self) -> "ImageRule":
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is above max_tiles {self.max_tiles}")
        return self

    def plan(self, width: int, height: int) -> TilePlan:
        """The plan of an image that is cut into tiles."""
        return plan_tiles(width, height, self.min_tiles, self.max_tiles, self.size, self.thumbnail)

    def count(self, width: int, height: int) -> int:
        """Number of tiles of an image of that size, without decoding it."""
        return self.plan(width, height).n_tiles if self.kind == "tiles" else 1

    def apply(self, image: Image.Image) -> np.ndarray:
        """An RGB image as uint8 [tiles, size, size, 3]."""
        if self.kind == "tiles":
            tiles = cut_tiles(image, self.plan(*image.size))
        else:
            if self.kind == "pad":
                image = pad_to_square(image, self.mean)
            tiles = [centre_crop(image, self.size) if self.kind == "crop" else _square(image, self.size)]
        return np.stack([np.asarray(tile) for tile in tiles])

    def normalise(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 [tiles, size, size, 3] as float32 [tiles, 3, size, size]: (value / 255 - mean) / std."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (tiles.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _square(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def pad_to_square(image: Image.Image, mean: Colour) -> Image.Image:
    """The image in the middle of a square of colour int(255 * mean); the offset is rounded down."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` pixels after the shortest edge was resized to `size` (CLIP's processor)."""
    short = min(image.size)
    width, height = (int(size * edge / short) for edge in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
