"""An encoded sample, and the loss weight of its labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from vlm.core.errors import ConfigError

IGNORE = -100


def pictures_of(tiles: int, grids: Sequence[tuple[int, int]] | None) -> list[slice]:
    """Return which of some tiles are encoded together: the cells of a whole image, else each tile by itself.

    >>> pictures_of(5, [(2, 2), (1, 1)])
    [slice(0, 4, None), slice(4, 5, None)]
    """
    sizes = [1] * tiles if grids is None else [columns * rows for columns, rows in grids]
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


@dataclass(frozen=True)
class Encoded:
    """One sample, ready to pack.

    - `input_ids`, `labels`: int64 [n]; a label is the id itself, or -100 where nothing is to be learned (not shifted)
    - `position_ids`: float64 [n]
    - `image_spans`: (index of the first context token, number of context tokens, number of tiles) per image
    - `pixels`: uint8 [tiles, size, size, 3]; None without images or when not asked for
    - `strides`: one per image; None for positions 0, 1, 2, ...
    - `truncated`: the end of an answer was cut off
    - `grids`: (columns, rows) of each picture whose tiles are cells of one whole image; None under other image rules

    There is no attention mask: every token counts, whatever its id.

    >>> encoded = encoder.encode(sample)                        # doctest: +SKIP
    >>> len(encoded), encoded.n_tiles, encoded.n_supervised     # doctest: +SKIP
    """

    id: str
    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    image_spans: list[tuple[int, int, int]]
    pixels: np.ndarray | None
    strides: list[float] | None
    truncated: bool = False
    grids: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_tiles(self) -> int:
        """Tiles of all images."""
        return sum(tiles for _, _, tiles in self.image_spans)

    @property
    def pictures(self) -> list[slice]:
        """The tiles that are encoded together, one slice each: the cells of a whole image, else each tile by itself."""
        return pictures_of(self.n_tiles, self.grids)

    @property
    def n_supervised(self) -> int:
        """Tokens with a label."""
        return int((self.labels != IGNORE).sum())

    def loss_weights(self, kind: Literal["token", "sample", "square"] = "token") -> np.ndarray:
        """Return the weight of each label, float32 [n], 0 where there is no label.

        With x labels in the sample a weight is 1 (`token`), 1 / x (`sample`) or 1 / sqrt(x) (`square`).
        Source: published `loss_reduction` (OpenGVLab/V2PE).
        """
        weights: np.ndarray = (self.labels != IGNORE) * len2weight(self.n_supervised, kind)
        return weights.astype(np.float32)


def len2weight(n_supervised: int, kind: str) -> float:
    """Return the weight of one label in a sample with `n_supervised` labels; see `Encoded.loss_weights`.

    Raises:
        ConfigError: `kind` is not token, sample or square.
    """
    exponents = {"token": 0.0, "sample": 1.0, "square": 0.5}
    if kind not in exponents:
        raise ConfigError(f"unknown loss reduction {kind!r}", expected=" | ".join(exponents))
    return 1 / n_supervised ** exponents[kind] if n_supervised else 0.0
