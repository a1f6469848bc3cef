"""The data stream: a pure function of (recipe, seed, step), seekable in O(1), the same for any number of workers.

>>> Stream(recipe, processor).step(7).rows[0].input_ids          # doctest: +SKIP

A step takes the next `batch.samples` samples of the epoch's order, encodes them and packs them into rows; `deal` gives
each rank its rows. Samples that cannot be used are listed in the ledger by name, never replaced.
"""

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlm.core.errors import ConfigError, DataError, MediaError, only_vlm_errors
from vlm.core.home import resolve
from vlm.core.media_root import MediaRoot
from vlm.core.sample.encode import Strides
from vlm.core.sample.encoded import Encoded
from vlm.core.sample.index import LineIndex, Mixture, Shuffle
from vlm.core.sample.lines import parse_line
from vlm.core.sample.packing import pack_step
from vlm.core.sample.positions import draw_strides
from vlm.core.sample.records import MEANT, Sample, read_record
from vlm.core.text import printable_lines
from vlm.models.batch import upload
from vlm.models.processor import Processor
from vlm.models.sequence.sharding import LAYOUTS
from vlm.train.recipe.recipe import DataEntry, Recipe
from vlm.train.run.augment import compress
from vlm.train.run.grouping import has_media, modality_order
from vlm.train.run.metrics import Lost, Stage
from vlm.train.run.waiting import Overdue, within


class Lines:
    """Records of one entry of a recipe, read when asked for. Raises DataError where their count is wrong.

    `outside` are folders outside of the entry's root that its records may name.
    """

    def __init__(self, entry: DataEntry, outside: Sequence[str] = ()):
        self.entry, self.root = entry, MediaRoot(resolve(entry.root), tuple(resolve(folder) for folder in outside))
        self.index = LineIndex(resolve(entry.file))
        if entry.count is not None and len(self) != entry.count:
            raise DataError(
                f"{self.index.path}: {len(self)} records",
                expected=f"{entry.count}",
                fix="make the file again, or correct `count` in the recipe",
            )

    def __len__(self) -> int:
        return len(self.index)

    def line(self, i: int) -> int:
        """Return the number of the line, from 1, that record i is on."""
        return self.index.line(i)

    def __getitem__(self, i: int) -> Sample:
        where = f"{self.index.path.name}:{self.line(i)}"
        record = parse_line(self.index[i], where)
        return read_record(record, root=self.root, where=where, allow=self.entry.allow)


@dataclass
class PackedRow:
    """One packed row of n tokens, as numpy arrays.

    `input_ids` and `labels` int64 [n]; `weights` float [n]; `position_ids` int64, or float64 with strides, [n];
    `cu_seqlens` int32 [documents + 1] marks document boundaries; `pixels` uint8 [tiles, H, W, 3] or None; `ids` names
    the samples; `grids`: (columns, rows) of each whole image, None under other image rules.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    position_ids: np.ndarray
    cu_seqlens: np.ndarray
    pixels: np.ndarray | None
    ids: list[str]
    grids: list[tuple[int, int]] | None = None

    @property
    def weight(self) -> float:
        """Sum of the loss weights that count: the first label of a document has no predecessor."""
        weights = self.weights.copy()
        weights[self.cu_seqlens[:-1]] = 0
        return float(weights[self.labels != -100].sum())


@dataclass
class StepData:
    """Rows of one step, in an order that does not depend on ranks, and the samples that are not used as they are.

    `late` names those that took too long here; other processes may have been in time.
    `notes` are lines for people: a key of a file that nothing reads, the first time that it is met.
    """

    rows: list[PackedRow]
    lost: list[Lost] = field(default_factory=list)
    n_samples: int = 0
    late: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def n_dropped(self) -> int:
        """Number of samples that are in no row."""
        return sum(lost.what == "dropped" for lost in self.lost)


class Stream:
    """Samples of a run, step by step: only recipe, seed and step decide which they are.

    >>> stream = Stream(recipe, processor)                                # doctest: +SKIP
    >>> [row.ids for row in stream.step(stream.total_steps - 1).rows]     # doctest: +SKIP

    `groups` of processes share the rows of a step: with more of them the same samples make more and shorter rows.

    Raises:
        DataError: no data, or another number of records than the recipe says.
    """

    def __init__(self, recipe: Recipe, processor: Processor, groups: int = 1):
        self.recipe, self.processor, self.groups = recipe, processor, groups
        limits = [entry.max_tiles for entry in recipe.data]
        self.processors = [processor if n is None else processor.with_image_rule(max_tiles=n) for n in limits]
        self.grouped: dict[int, list[int]] = {}
        self.noted: set[tuple[int, str]] = set()
        self.files = [Lines(entry, recipe.allow_outside) for entry in recipe.data]
        self.index = Mixture([len(f) for f in self.files], [entry.repeat for entry in recipe.data], recipe.seed)
        if not len(self.index):
            raise DataError("the training mixture is empty", expected="at least one record")

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.recipe.total_steps(len(self.index))

    @property
    def unseen(self) -> list[str]:
        """Names of the samples at the end of the last pass that do not fill a step, so that no step takes them."""
        left, begin = self.recipe.unseen(len(self.index)), self.total_steps * self.recipe.batch.samples
        return [self.name(number, line) for _, number, line in map(self.pick, range(begin, begin + left))]

    def order(self, epoch: int) -> Sequence[int]:
        """Return the order of one epoch, seeded by (seed, epoch)."""
        if self.recipe.batch.grouping == "none":
            return _order(self.recipe.seed, epoch, len(self.index))
        if epoch not in self.grouped:
            samples = self.recipe.batch.samples
            self.grouped = {epoch: modality_order(self.media, samples, self.recipe.seed, epoch).tolist()}
        return self.grouped[epoch]

    @cached_property
    def media(self) -> list[bool]:
        """Whether each sample of an epoch, before shuffling, has an image or a video: one pass over the files."""
        flags = [[has_media(file.index[i]) for i in range(len(file))] for file in self.files]
        return [flags[number][line] for number, line in self.index]

    def picks(self, step: int) -> list[tuple[int, int, int]]:
        """Return (epoch, file, line) of each sample of a step. Epochs follow one another without a gap."""
        size = self.recipe.batch.samples
        return [self.pick(k) for k in range(step * size, (step + 1) * size)]

    def pick(self, k: int) -> tuple[int, int, int]:
        """Return (epoch, file, line) of sample k of the run."""
        epoch, offset = divmod(k, len(self.index))
        number, line = self.index[self.order(epoch)[offset]]
        return epoch, number, line

    def name(self, number: int, line: int) -> str:
        """Return what the ledger calls a sample."""
        return f"{self.recipe.data[number].name}:{self.files[number].line(line)}"

    def strides_for(self, epoch: int, number: int, line: int) -> Strides:
        """Return the strides of a sample's images; random ones depend on (seed, epoch, sample) alone."""
        if self.recipe.strides != "random":
            return self.recipe.strides
        rng = random.Random(f"{self.recipe.seed}/{epoch}/{number}/{line}")
        # n is the encoder's count, in which each frame of a video is an image
        return lambda n: draw_strides(n, rng, self.recipe.stride_choices)

    def step(self, step: int, skip: Set[str] = frozenset()) -> StepData:
        """Make the rows of a step.

        Args:
            step: counted from 0.
            skip: names of samples that another process waited for too long: they are late here too.

        Raises:
            ConfigError: a sample is longer than a row.
        """
        data, encoded, limit = StepData([]), [], self.recipe.sample_seconds
        for epoch, number, line in self.picks(step):
            data.n_samples += 1
            name = self.name(number, line)
            stage: Stage = "read"
            try:
                if name in skip:
                    raise Overdue(f"not made within {limit:g} s by another process")
                with only_vlm_errors(name):
                    sample = within(limit, partial(self.files[number].__getitem__, line))
                    stage = "encode"
                    encode = partial(
                        self.processors[number].encode,
                        sample.messages,
                        strides=self.strides_for(epoch, number, line),
                        generation_prompt=False,
                        max_length=self.recipe.max_length,
                        id=sample.id,
                    )
                    one = within(limit, encode)
            except DataError as error:
                if isinstance(error, Overdue):
                    data.late.add(name)
                stage = "media" if isinstance(error, MediaError) else stage
                data.lost.append(Lost(name, "dropped", stage, printable_lines(str(error))))
                continue
            data.notes += self.notes(number, name, sample)
            if one.n_supervised == 0:
                data.lost.append(Lost(name, "dropped", "encode", "no supervised token"))
                continue
            if one.n_tiles > self.recipe.batch.max_tiles:
                why = f"{one.n_tiles} tiles, batch.max_tiles is {self.recipe.batch.max_tiles}"
                data.lost.append(Lost(name, "dropped", "pack", why))
                continue
            if self.recipe.jpeg_quality and one.pixels is not None:
                rng = random.Random(f"{self.recipe.seed}/{epoch}/{number}/{line}/jpeg")
                one = replace(one, pixels=compress(one.pixels, self.recipe.jpeg_quality, rng))
            if one.truncated:
                data.lost.append(Lost(name, "truncated", "encode", f"cut to {self.recipe.max_length} tokens"))
            encoded.append(one)
        data.rows = self.rows(encoded)
        return data

    def notes(self, number: int, name: str, sample: Sample) -> list[str]:
        """Return a line for each key of a sample that nothing reads, once for each file and key."""
        new = [key for key in sample.unread if (number, key) not in self.noted]
        self.noted |= {(number, key) for key in new}
        return [f"{name}: the key `{key}` is not read{f'; {MEANT[key]}' if key in MEANT else ''}" for key in new]

    def rows(self, encoded: list[Encoded]) -> list[PackedRow]:
        """Pack samples into rows."""
        batch = self.recipe.batch
        lengths = [len(e.input_ids) for e in encoded]
        tiles = [0 if e.pixels is None else len(e.pixels) for e in encoded]
        if batch.packing != "none" and lengths and max(lengths) > batch.max_tokens:
            raise ConfigError(
                f"a sample has {max(lengths)} tokens, batch.max_tokens is {batch.max_tokens}",
                expected="max_length <= batch.max_tokens",
            )
        if batch.packing == "greedy":
            tiles = [max(1, t) for t in tiles]  # published: a text-only sample carries a dummy tile
        groups = pack_step(lengths, tiles, batch.max_tokens, batch.max_tiles, groups=self.groups, packing=batch.packing)
        return [make_row([encoded[i] for i in group], self.recipe.loss) for group in groups]


def make_row(group: list[Encoded], loss: Literal["token", "sample", "square"]) -> PackedRow:
    """Put samples one after the other. Positions are integers where no sample has a stride."""
    pixels = [e.pixels for e in group if e.pixels is not None and len(e.pixels)]
    return PackedRow(
        input_ids=np.concatenate([e.input_ids for e in group]),
        labels=np.concatenate([e.labels for e in group]),
        weights=np.concatenate([e.loss_weights(loss) for e in group]),
        position_ids=np.concatenate([e.position_ids for e in group]).astype(
            np.int64 if all(e.strides is None for e in group) else np.float64
        ),
        cu_seqlens=np.cumsum([0, *(len(e.input_ids) for e in group)]).astype(np.int32),
        pixels=np.concatenate(pixels) if pixels else None,
        ids=[e.id for e in group],
        grids=None if group[0].grids is None else [grid for e in group for grid in e.grids or ()],
    )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, total: int) -> Shuffle:
    return Shuffle(total, seed, epoch, 0x6F72)


def computed(row: PackedRow, kind: str, size: int) -> int:
    """Count the tokens of a row with the padding that `size` processes need to hold it together."""
    return size * len(LAYOUTS[kind](torch.from_numpy(row.cu_seqlens), 0, size).places) if size > 1 else len(row.labels)


def to_tensors(
    row: PackedRow, processor: Processor, device: torch.device, pixels_on: torch.device | None = None
) -> dict[str, Tensor | None]:
    """Return a row as arguments of the model's forward (batch of one); pixels go to `pixels_on` if it is given.

    The host does not wait for the copies. `cu_seqlens` stays on the CPU, where its numbers are asked for.
    """

    def batch(array: np.ndarray) -> Tensor:
        return upload(torch.from_numpy(array), device)[None]

    return {
        "input_ids": batch(row.input_ids),
        "labels": batch(row.labels),
        "loss_weights": batch(row.weights),
        "position_ids": batch(row.position_ids),
        "cu_seqlens": torch.from_numpy(row.cu_seqlens),
        "pixel_values": None if row.pixels is None else upload(processor.pixels(row.pixels), pixels_on or device),
        "image_grids": torch.tensor(row.grids) if row.grids and row.pixels is not None else None,
    }
