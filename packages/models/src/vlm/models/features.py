"""Features of image tiles, kept by content: a picture that several prompts ask about is encoded once.

>>> known = TileFeatures(model, processor, limit=1 << 28)                                  # doctest: +SKIP
>>> answer(model, processor, prompts, max_new_tokens=64, known=known)                      # doctest: +SKIP
"""

import hashlib
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from vlm.models.batch import upload
from vlm.models.processor import Processor
from vlm.models.vlm import VisionLanguageModel

KEPT = 1 << 28
"""Bytes of features that are kept by default: 256 tiles of InternVL2-2B in bfloat16, many thousands of a tiny model."""


def digest_of(tile: np.ndarray) -> bytes:
    """Return what stands for the content of a tile."""
    return hashlib.blake2b(tile.tobytes(), digest_size=16).digest()


class TileFeatures:
    """Features [T, C] of tiles by their content, at most `limit` bytes of them; the least recently used go first."""

    def __init__(self, model: VisionLanguageModel, processor: Processor, limit: int = KEPT):
        self.model, self.processor, self.limit = model, processor, limit
        self.kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self.nbytes = 0

    def get(self, key: bytes) -> Tensor | None:
        """Return known features."""
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def encode(
        self, tiles: dict[bytes, np.ndarray], chunk: int | None = None, grids: list[tuple[int, int]] | None = None
    ) -> dict[bytes, Tensor]:
        """Encode tiles uint8 [S, S, 3], at most `chunk` at once, and remember them.

        With `grids` they are the cells of whole images, which are encoded as they are.
        """
        device, result = next(self.model.parameters()).device, dict[bytes, Tensor]()
        keys, step = list(tiles), (chunk if grids is None else None) or max(1, len(tiles))
        for part in (keys[start : start + step] for start in range(0, len(keys), step)):
            # floats of one chunk at a time: they take four times the memory of the bytes
            pixels = self.processor.pixels(np.stack([tiles[key] for key in part]))
            made = self.model.encode_images(upload(pixels, device), chunk, grids)
            result |= {key: features.clone() for key, features in zip(part, made, strict=True)}
        for key, features in result.items():
            self.kept[key] = features
            self.nbytes += features.numel() * features.element_size()
        while self.nbytes > self.limit and self.kept:
            _, old = self.kept.popitem(last=False)
            self.nbytes -= old.numel() * old.element_size()
        return result

    def of(self, tiles: list[np.ndarray], chunk: int) -> Tensor:
        """Return features [tiles, T, C] of tiles in their order; of those that are not known, equal ones count once."""
        keys = [digest_of(tile) for tile in tiles]
        unique = dict(zip(keys, tiles, strict=True))
        known = {key: features for key in unique if (features := self.get(key)) is not None}
        known |= self.encode({key: tile for key, tile in unique.items() if key not in known}, chunk)
        return torch.stack([known[key] for key in keys])
