"""What requests share beside `features`: keys and values of equal beginnings. The oldest are forgotten."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm.core.sample.encoded import Encoded
from vlm.models.attention import RowCache
from vlm.models.batch import upload
from vlm.models.features import digests_of
from vlm.models.vlm import VisionLanguageModel


@dataclass(frozen=True, eq=False)
class PromptKeys:
    """What a prompt's keys and values depend on, token by token: ids with the content of tiles, and positions."""

    ids: np.ndarray
    positions: np.ndarray
    tiles: tuple[bytes, ...]
    """Digest of each tile, in reading order; of a cell, of its whole image and its place in it."""

    @classmethod
    def of(cls, prompt: Encoded, context_id: int) -> "PromptKeys":
        """Return the keys of an encoded prompt: an image token's id becomes a number from its tile's content."""
        ids = prompt.input_ids.astype(np.int64, copy=True)
        digests = () if prompt.pixels is None else tuple(digests_of(prompt.pixels, prompt.grids))
        marks = np.array([int.from_bytes(d[:7], "big") + 2**32 for d in digests], np.int64)
        places = np.flatnonzero(ids == context_id)
        if len(marks):
            ids[places] = np.repeat(marks, len(places) // len(marks))
        return cls(ids, prompt.position_ids, digests)

    def shared(self, other: "PromptKeys") -> int:
        """Return how many tokens both begin with."""
        n = min(len(self.ids), len(other.ids))
        differ = (self.ids[:n] != other.ids[:n]) | (self.positions[:n] != other.positions[:n])
        return int(differ.argmax()) if differ.any() else n

    def to_encode(
        self, prompt: Encoded, missing: dict[bytes, int], tiles: int
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Return the tiles to encode, at most `tiles`, and the grids of whole images: of those at least one."""
        numbers = set(missing.values())
        if prompt.grids is None:
            return sorted(numbers)[:tiles], None
        chosen: list[int] = []
        grids: list[tuple[int, int]] = []
        known: set[bytes] = set()
        for grid, cells in zip(prompt.grids, prompt.pictures, strict=True):
            mine = range(cells.start, cells.stop)
            if self.tiles[cells.start] in known or numbers.isdisjoint(mine):
                continue
            if tiles < 1 or (chosen and len(chosen) + len(mine) > tiles):
                break
            known.add(self.tiles[cells.start])
            chosen += mine
            grids.append(grid)
        return chosen, grids

    def longer(self, ids: list[int]) -> "PromptKeys":
        """Return these keys with the reply's tokens behind them, as a next turn would repeat them."""
        start = np.ceil(self.positions[-1]) + 1
        return PromptKeys(
            np.concatenate([self.ids, np.array(ids, np.int64)]),
            np.concatenate([self.positions, start + np.arange(len(ids))]),
            self.tiles,
        )


@dataclass(frozen=True, eq=False)
class KeptPrefix:
    """A finished request's keys and values. `plain`: its positions count 0, 1, 2, ..."""

    keys: PromptKeys
    row: RowCache
    plain: bool


class PrefixCache:
    """Keys and values of finished requests, at most `limit` bytes; a new request continues from the longest match."""

    def __init__(self, limit: int):
        self.limit = limit
        self.kept: list[KeptPrefix] = []  # the least recently used first

    @property
    def nbytes(self) -> int:
        """Return the bytes held."""
        return sum(entry.row.nbytes for entry in self.kept)

    def find(self, keys: PromptKeys, plain: bool) -> RowCache | None:
        """Return a cache of its own with what is known of a prompt, at least its last token left out."""
        best, length = None, 0
        for entry in self.kept:
            n = min(entry.keys.shared(keys), entry.row.length, len(keys.ids) - 1)
            if entry.plain == plain and n > length:
                best, length = entry, n
        if best is None:
            return None
        self.kept.remove(best)
        self.kept.append(best)
        return best.row.copy(length)

    def keep(self, keys: PromptKeys, row: RowCache, plain: bool) -> None:
        """Remember a finished request; what it contains whole is dropped, then the oldest."""
        if row.nbytes > self.limit or not row.length:
            return
        self.kept = [
            entry
            for entry in self.kept
            if entry.plain != plain or entry.row.length > row.length or keys.shared(entry.keys) < entry.row.length
        ]
        self.kept.append(KeptPrefix(keys, row, plain))
        while self.nbytes > self.limit:
            self.kept.pop(0)


def rope_depends_on_length(model: VisionLanguageModel, length: int, plain: bool) -> bool:
    """Return whether dynamic NTK scaling makes the keys of a prompt depend on its length."""
    language = model.spec.language
    scaling = language.rope_scaling
    return plain and scaling is not None and scaling.kind == "dynamic" and length > language.max_positions


def as_positions(values: np.ndarray | list[float], length: int, plain: bool, device: torch.device) -> Tensor:
    """Return positions [1, n] (V2PE, float64), or [1, n, 2] beside the length that rotary scaling goes by (int64)."""
    positions = torch.from_numpy(np.asarray(values, np.float64))[None]
    if plain:
        counted = positions.long()
        positions = torch.stack([counted, torch.full_like(counted, length)], dim=-1)
    return upload(positions, device)
