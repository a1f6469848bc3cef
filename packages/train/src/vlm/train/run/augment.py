"""Training-time degradation of tiles by JPEG compression, as a function of the sample's random numbers."""

import io
import random

import numpy as np
from PIL import Image


def compress(tiles: np.ndarray, quality: tuple[int, int], rng: random.Random) -> np.ndarray:
    """Compress each tile as JPEG at a quality drawn between both ends, inclusive.

    Args:
        tiles: uint8 [tiles, S, S, 3].
        quality: lowest and highest.
        rng: the sample's random numbers.

    Returns:
        An array of the same shape and dtype.

    Source: the published transform of sets with `data_augment` (OpenGVLab/V2PE: 75 to 100, one draw a tile).
    """
    done = np.empty_like(tiles)
    for i, tile in enumerate(tiles):
        with io.BytesIO() as file:
            Image.fromarray(tile).save(file, format="JPEG", quality=rng.randint(*quality))
            with Image.open(file, formats=["JPEG"]) as image:
                done[i] = np.asarray(image.convert("RGB"))
    return done
