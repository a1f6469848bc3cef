"""Fast resizing for `ImageRule` (`resize: fast`, opt-in): torch's antialiased bicubic on uint8 pixels, channels last.

Like Pillow's, it widens its kernel when it shrinks an image. Its weights are rounded differently, so that pixels differ
(measured by `bench/tiles.py`).
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vlm.core.sample.tiling import TilePlan


def cut_tiles(image: NDArray[np.uint8], plan: TilePlan) -> NDArray[np.uint8]:
    """Cut an image, uint8 [h, w, 3] -> uint8 [tiles, S, S, 3]: the tiles row by row, the thumbnail last."""
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # a view: the bytes stay channels last
    columns, rows = plan.grid
    size = plan.tile_size
    canvas = resized(pixels, (rows * size, columns * size))
    tiles = canvas[0].reshape(rows, size, columns, size, 3).transpose(1, 2).flatten(0, 1)
    if plan.thumbnail:
        tiles = torch.cat([tiles, resized(pixels, (size, size))])
    cut: NDArray[np.uint8] = tiles.numpy()
    return cut


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 [1, 3, h, w] in channels-last order -> uint8 [1, H, W, 3]; `size` is (H, W)."""
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
