"""Features of image tiles, kept by content: a picture that several prompts ask about is encoded once.

>>> known = TileFeatures(model, processor, limit=1 << 28)                                  # doctest: +SKIP
>>> answer(model, processor, prompts, max_new_tokens=64, known=known)                      # doctest: +SKIP
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlm.core.sample.encoded import pictures_of
from vlm.models.batch import upload
from vlm.models.processor import Processor
from vlm.models.vlm import VisionLanguageModel

Grids = Sequence[tuple[int, int]]

KEPT = 1 << 28
"""Bytes of features that are kept by default: 256 tiles of InternVL2-2B in bfloat16, many thousands of a tiny model."""


def digests_of(tiles: Sequence[np.ndarray] | np.ndarray, grids: Grids | None = None) -> list[bytes]:
    """Return what stands for the content of each tile; for a cell, that of its whole image and its place in it."""
    found = []
    for number, cells in enumerate(pictures_of(len(tiles), grids)):
        picture = hashlib.blake2b(digest_size=16)
        for tile in tiles[cells]:
            picture.update(tile.tobytes())
        if grids is None:
            found.append(picture.digest())
            continue
        picture.update(repr(grids[number]).encode())
        for cell in range(cells.stop - cells.start):
            one = picture.copy()
            one.update(cell.to_bytes(4, "big"))
            found.append(one.digest())
    return found


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
        self, tiles: dict[bytes, np.ndarray], chunk: int | None = None, grids: Grids | None = None
    ) -> dict[bytes, Tensor]:
        """Encode tiles uint8 [S, S, 3], at most `chunk` pictures at once, and remember them.

        With `grids` they are the cells of whole images, which are encoded as they are.
        """
        device, result = next(self.model.parameters()).device, dict[bytes, Tensor]()
        keys, pictures = list(tiles), pictures_of(len(tiles), grids)
        step = chunk or max(1, len(pictures))
        for start in range(0, len(pictures), step):
            some = slice(start, start + step)
            part = keys[pictures[some][0].start : pictures[some][-1].stop]
            # floats of one chunk at a time: they take four times the memory of the bytes
            pixels = self.processor.pixels(np.stack([tiles[key] for key in part]))
            made = self.model.encode_images(upload(pixels, device), grids=None if grids is None else grids[some])
            result |= {key: features.clone() for key, features in zip(part, made, strict=True)}
        for key, features in result.items():
            self.kept[key] = features
            self.nbytes += features.numel() * features.element_size()
        while self.nbytes > self.limit and self.kept:
            _, old = self.kept.popitem(last=False)
            self.nbytes -= old.numel() * old.element_size()
        return result

    def of(self, tiles: list[np.ndarray], chunk: int, grids: Grids | None = None) -> Tensor:
        """Return features [tiles, T, C] in the tiles' order; of pictures that are not known, equal ones count once."""
        keys = digests_of(tiles, grids)
        known = {key: features for key in dict.fromkeys(keys) if (features := self.get(key)) is not None}
        missing, shapes = dict[bytes, np.ndarray](), list[tuple[int, int]]()
        for number, cells in enumerate(pictures_of(len(tiles), grids)):
            mine = keys[cells]
            if mine[0] not in missing and not known.keys() >= set(mine):
                missing |= zip(mine, tiles[cells], strict=True)
                shapes += [] if grids is None else [grids[number]]
        known |= self.encode(missing, chunk, None if grids is None else shapes)
        return torch.stack([known[key] for key in keys])
