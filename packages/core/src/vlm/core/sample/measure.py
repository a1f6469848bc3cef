"""Tokens, tiles and labels of a sample, counted from image headers, exactly as the encoder makes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vlm.core.sample.chat import render
from vlm.core.sample.encode import GROUNDING, ImageTokenIds, Run, SampleEncoder, frames_as_images
from vlm.core.sample.media import image_facts, load_video
from vlm.core.sample.records import Sample
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Rules:
    """The inputs of a count: tokenizer, template and image rule of a model, limits and strides of a recipe."""

    tokenizer: Path
    template: str
    image_rule: ImageRule
    tokens_per_tile: int
    image_tokens: ImageTokenIds
    system: str | None = None
    max_length: int | None = None
    max_tiles: int | None = None
    strides: tuple[float | None, ...] = (None,)
    max_positions: int | None = None

    def limited(self, max_tiles: int | None) -> "Rules":
        """Return the rules of an entry of a recipe that has a limit of tiles for each image, or None for no limit."""
        return self if max_tiles is None else replace(self, image_rule=self.image_rule.changed(max_tiles=max_tiles))


def positions_used(layout: Sequence[tuple[str, int]], tokens_per_tile: int, stride: float | None, brackets: int) -> int:
    """Return the highest position + 1, rounded up, that `vlm.core.sample.positions` would give, by arithmetic."""
    last = -1
    for kind, count in layout:
        if kind == "text":
            last += count
        elif stride is None:
            last += count * tokens_per_tile + 2 * brackets
        else:
            last = math.ceil(last + brackets + count * tokens_per_tile * stride / tokens_per_tile) + brackets
    return last + 1


class SampleMeter(SampleEncoder):
    """An encoder that counts: the same runs and the same tokenizer, each run and each header read once.

    >>> SampleMeter(rules).measure(sample)   # doctest: +SKIP
    """

    def __init__(self, rules: Rules):
        super().__init__(
            load_tokenizer(rules.tokenizer),
            rules.template,
            rules.image_rule,
            rules.tokens_per_tile,
            rules.image_tokens,
            rules.system,
        )
        self.rules = rules
        self.counted = lru_cache(1 << 16)(self._counted)
        self.covered = lru_cache(1 << 12)(self._covered)
        self.header = lru_cache(1 << 18)(header)
        form = [*self.template.headers.values(), *self.template.ends.values(), *self.template.stop]
        markers = {*self.tokenizer.specials, *(text.strip() for text in form)} - GROUNDING - {""}
        self.markers: dict[str, list[str]] = {}
        for marker in sorted(markers):
            self.markers.setdefault(marker[0], []).append(marker)

    def _counted(self, run: Run) -> tuple[int, int]:
        """Return tokens and supervised tokens of a run of text; a token belongs to the piece where it begins.

        When the only question is where the answer begins, the ids decide: if the ids of the text before it, alone, open
        the run, the next token begins with the answer.
        """
        text = "".join(piece for piece, _ in run.pieces)
        flags = [supervised for _, supervised in run.pieces]
        cut = flags.index(True) if True in flags else len(flags)
        if all(flags[cut:]):
            tokens = self.tokenizer.tokenize(text, run.start, places=False)
            if cut == len(flags):
                return len(tokens), 0
            before = self.covered("".join(piece for piece, _ in run.pieces[:cut]), run.start)
            if before is not None and [i for i, _ in tokens[: len(before)]] == before:
                return len(tokens), len(tokens) - len(before)
        supervised = self.tokenized(run)[1]
        return len(supervised), sum(supervised)

    def _covered(self, text: str, start: bool) -> list[int] | None:
        """Return the ids of a text alone; None when a blank at its end might be in none of them."""
        tokens = self.tokenizer.tokenize(text, start)
        if text and text[-1].isspace() and (not tokens or tokens[-1][1] != len(text) - 1):
            return None
        return [i for i, _ in tokens]

    def read_size(self, path: str | Path) -> tuple[int, int]:
        """Return (width, height) of an image from its header, read once."""
        return self.header(str(path)).size

    def load_frames(self, path: str | Path, segments: int, clip: Any = None) -> list[Image.Image]:
        """Return stand-ins for video frames: each is one tile, whatever it shows. Of whole images the size counts."""
        if self.image_rule.kind == "whole":
            return load_video(path, segments, clip)
        return [Image.new("RGB", (1, 1))] * segments

    def measure(self, sample: Sample) -> list[int]:
        """Count a sample without decoding an image.

        Returns:
            Tiles, tokens, labels, tokens and labels within `max_length`, then the positions used for each stride.

        Raises:
            DataError: See `SampleEncoder.encode`.
            MediaError: A header cannot be read.
        """
        messages = frames_as_images(sample.messages, self.load_frames, self.segments, self.template.frame)
        spans = render(messages, self.template, self.system)
        tiles, _, _ = self._images([s.medium for s in spans if s.medium is not None], pixels=False)
        brackets, remaining = int(self.image_tokens.start is not None), iter(tiles)
        text = int(self.tokenizer.add_bos)
        labels, layout = 0, []
        for run in self.runs(spans):
            if run.image:
                layout += [("text", text), ("image", next(remaining))]
                text = 0
            elif run.token is not None:
                text += 1
                labels += run.supervised
            else:
                n, learned = self.counted(run)
                text += n
                labels += learned
        layout.append(("text", text))
        tokens = positions_used(layout, self.tokens_per_tile, None, brackets)
        kept, labels_kept = tokens, labels
        if self.rules.max_length is not None and tokens > self.rules.max_length:
            encoded = self.encode(sample, max_length=self.rules.max_length, pixels=False)
            kept, labels_kept = len(encoded), encoded.n_supervised
        cut = tokens - kept  # text at the end, one position each
        used = (positions_used(layout, self.tokens_per_tile, stride, brackets) - cut for stride in self.rules.strides)
        return [sum(tiles), tokens, labels, kept, labels_kept, *used]

    def marker_in(self, text: str) -> str | None:
        """Return a marker of the template, or a special token, that the text contains; None without one."""
        near = (marker for first, known in self.markers.items() if first in text for marker in known)
        return next((marker for marker in near if marker in text), None)


class Header(NamedTuple):
    """What the first and last bytes of an image say.

    `size` is (width, height); `finished` says that a JPEG or PNG has its end marker; `notes` are (kind, what) of what a
    viewer shows in another way than the model sees it: `rotated`, `transparent`, `float`.
    """

    size: tuple[int, int]
    finished: bool
    notes: tuple[tuple[str, str], ...]


def header(path: str) -> Header:
    """Return what the header of an image says, and whether a JPEG or PNG has its end marker.

    Raises:
        MediaError: The header cannot be read.
    """
    return Header(*image_facts(path))
