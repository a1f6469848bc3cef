"""The data stream: a pure function of (recipe, seed, step). Seekable in O(1), the same for any number of workers.

A step takes the next `batch.samples` samples of the epoch's order, encodes them, packs them into rows, and deals the
rows to the ranks. What cannot be used is told to the ledger by name, never replaced.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vlm.core.encode import Encoded, Strides
from vlm.core.errors import ConfigError, DataError
from vlm.core.home import resolve
from vlm.core.packing import pack
from vlm.core.positions import draw_strides
from vlm.core.records import Sample, read_record
from vlm.models.processor import Processor
from vlm.train.recipe import DataEntry, Recipe


class Lines:
    """Random access to the lines of a JSONL file through an offset index; only the index stays in memory."""

    def __init__(self, entry: DataEntry):
        self.entry, self.path = entry, resolve(entry.file)
        if not self.path.exists():
            raise DataError(f"no such file: {self.path}", fix="`vlm plan RECIPE` shows the line that fetches it")
        raw = np.memmap(self.path, dtype=np.uint8, mode="r") if self.path.stat().st_size else np.empty(0, np.uint8)
        ends = np.flatnonzero(raw == ord("\n")) + 1
        if len(raw) and (not len(ends) or ends[-1] != len(raw)):
            ends = np.append(ends, len(raw))
        self.bounds = np.concatenate([[0], ends])
        if entry.count is not None and len(self) != entry.count:
            raise DataError(
                f"{self.path}: {len(self)} records",
                expected=f"{entry.count}",
                fix="make the file again, or correct `count` in the recipe",
            )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Sample:
        import json

        where = f"{self.path.name}:{index + 1}"
        with self.path.open("rb") as f:
            f.seek(self.bounds[index])
            line = f.read(self.bounds[index + 1] - self.bounds[index])
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}", fix="repair or remove the line") from error
        return read_record(record, root=resolve(self.entry.root), where=where)


@dataclass
class Row:
    """One packed row, ready for the model (numpy; pixels uint8 until the device)."""

    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    position_ids: np.ndarray
    cu_seqlens: np.ndarray
    pixels: np.ndarray | None
    ids: list[str]

    @property
    def weight(self) -> float:
        """Sum of the loss weights that count: the first label of a document has no predecessor."""
        weights = self.weights.copy()
        weights[self.cu_seqlens[:-1]] = 0
        return float(weights[self.labels != -100].sum())


@dataclass
class StepData:
    """What one step is made of: all rows, in an order that does not depend on ranks, and the samples not used as is."""

    rows: list[Row]
    lost: list[tuple[str, str, str]] = field(default_factory=list)
    n_samples: int = 0


class Stream:
    """`stream.step(k)` gives the samples of step k; nothing else decides what they are."""

    def __init__(self, recipe: Recipe, processor: Processor):
        self.recipe, self.processor = recipe, processor
        self.files = [Lines(entry) for entry in recipe.data]
        self.index = self.mixture()
        if not len(self.index):
            raise DataError("the training mixture is empty", expected="at least one record")

    def mixture(self) -> np.ndarray:
        """[samples of an epoch, 2]: (file, line). Whole repeats, then a seeded choice for the fraction."""
        parts = []
        for number, lines in enumerate(self.files):
            repeat = lines.entry.repeat
            whole, rest = int(repeat), repeat - int(repeat)
            rng = np.random.default_rng([self.recipe.seed, number])
            part = np.sort(rng.permutation(len(lines))[: round(rest * len(lines))])
            order = np.concatenate([np.arange(len(lines))] * whole + [part])
            parts.append(np.stack([np.full(len(order), number), order], axis=1))
        return np.concatenate(parts)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        if self.recipe.steps is not None:
            return self.recipe.steps
        assert self.recipe.epochs is not None  # the recipe's validator has seen to it
        return max(1, int(self.recipe.epochs * len(self.index) / self.recipe.batch.samples))

    def order(self, epoch: int) -> np.ndarray:
        """The order of one epoch, seeded by (seed, epoch)."""
        return _order(self.recipe.seed, epoch, len(self.index))

    def picks(self, step: int) -> list[tuple[int, int, int]]:
        """(epoch, file, line) of each sample of a step. Epochs follow one another without a gap."""
        size, total = self.recipe.batch.samples, len(self.index)
        result = []
        for k in range(step * size, (step + 1) * size):
            epoch, offset = divmod(k, total)
            number, line = self.index[self.order(epoch)[offset]]
            result.append((epoch, int(number), int(line)))
        return result

    def strides_for(self, epoch: int, number: int, line: int) -> Strides:
        """Positions per tile of the images of a sample; random ones depend on (seed, epoch, sample) alone."""
        if self.recipe.strides != "random":
            return self.recipe.strides
        rng = random.Random(f"{self.recipe.seed}/{epoch}/{number}/{line}")
        # n is the encoder's count, in which each frame of a video is an image
        return lambda n: draw_strides(n, rng, self.recipe.stride_choices)

    def step(self, step: int) -> StepData:
        """The rows of a step."""
        data, encoded = StepData([]), []
        for epoch, number, line in self.picks(step):
            data.n_samples += 1
            name = f"{self.recipe.data[number].name}:{line + 1}"
            try:
                sample = self.files[number][line]
                one = self.processor.encode(
                    sample.messages,
                    strides=self.strides_for(epoch, number, line),
                    generation_prompt=False,
                    max_length=self.recipe.max_length,
                    id=sample.id,
                )
            except DataError as error:
                data.lost.append((name, "dropped", str(error)))
                continue
            if one.n_supervised == 0:
                data.lost.append((name, "dropped", "no supervised token"))
                continue
            if one.n_tiles > self.recipe.batch.max_tiles:
                why = f"{one.n_tiles} tiles, batch.max_tiles is {self.recipe.batch.max_tiles}"
                data.lost.append((name, "dropped", why))
                continue
            if one.truncated:
                data.lost.append((name, "truncated", f"cut to {self.recipe.max_length} tokens"))
            encoded.append(one)
        data.rows = self.rows(encoded)
        return data

    def rows(self, encoded: list[Encoded]) -> list[Row]:
        """Samples packed into rows."""
        batch = self.recipe.batch
        lengths = [len(e.input_ids) for e in encoded]
        tiles = [0 if e.pixels is None else len(e.pixels) for e in encoded]
        if batch.packing == "none":
            groups = [[i] for i in range(len(encoded))]
        else:
            if lengths and max(lengths) > batch.max_tokens:
                raise ConfigError(
                    f"a sample has {max(lengths)} tokens, batch.max_tokens is {batch.max_tokens}",
                    expected="max_length <= batch.max_tokens",
                )
            groups = pack(lengths, tiles, batch.max_tokens, batch.max_tiles, len(lengths) or 1)
        return [self.row([encoded[i] for i in group]) for group in groups]

    def row(self, group: list[Encoded]) -> Row:
        pixels = [e.pixels for e in group if e.pixels is not None and len(e.pixels)]
        return Row(
            input_ids=np.concatenate([e.input_ids for e in group]),
            labels=np.concatenate([e.labels for e in group]),
            weights=np.concatenate([e.loss_weights(self.recipe.loss) for e in group]),
            position_ids=np.concatenate([e.position_ids for e in group]).astype(
                np.int64 if all(e.strides is None for e in group) else np.float64
            ),
            cu_seqlens=np.cumsum([0, *(len(e.input_ids) for e in group)]).astype(np.int32),
            pixels=np.concatenate(pixels) if pixels else None,
            ids=[e.id for e in group],
        )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0x6F72]).permutation(total)


def deal(rows: list[Row], rank: int, world: int) -> list[Row]:
    """The rows of one rank: longest first, each to the least loaded rank."""
    loads, mine = [0] * world, []
    for row in sorted(rows, key=lambda r: -len(r.input_ids)):
        target = loads.index(min(loads))
        loads[target] += len(row.input_ids)
        if target == rank:
            mine.append(row)
    return mine


def to_tensors(row: Row, processor: Processor, device: torch.device) -> dict[str, Tensor | None]:
    """Arguments of the model's forward for a row (batch of one). Positions stay float64."""

    def batch(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)[None]

    return {
        "input_ids": batch(row.input_ids),
        "labels": batch(row.labels),
        "loss_weights": batch(row.weights),
        "position_ids": batch(row.position_ids),
        "cu_seqlens": torch.from_numpy(row.cu_seqlens).to(device),
        "pixel_values": None if row.pixels is None else processor.pixels(row.pixels).to(device),
    }
