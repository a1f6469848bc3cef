"""The fast path of `ImageRule` (`resize: fast`): torch's antialiased bicubic on uint8 pixels, channels last. Opt-in.

Like Pillow's it widens its kernel when it shrinks; its weights are rounded otherwise, so pixels differ (`bench/tiles`).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.core.sample.tiling import TilePlan


def cut_tiles(image: np.ndarray, plan: TilePlan) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [tiles, S, S, 3]: the tiles of the plan row by row, the thumbnail last."""
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # a view: the bytes stay channels last
    columns, rows = plan.grid
    size = plan.tile_size
    canvas = resized(pixels, (rows * size, columns * size))
    tiles = canvas[0].unflatten(0, (rows, size)).unflatten(2, (columns, size)).transpose(1, 2).flatten(0, 1)
    if plan.thumbnail:
        tiles = torch.cat([tiles, resized(pixels, (size, size))])
    return tiles.numpy()


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [1, 3, h, w] in channels-last order -> uint8 [1, H, W, 3] of that (height, width)."""
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
