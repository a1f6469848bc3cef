"""A conversation as token ids, labels, positions and pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlm.core.errors import ConfigError, DataError
from vlm.core.sample.chat import Span, Template, get_template, render
from vlm.core.sample.encoded import IGNORE, Encoded
from vlm.core.sample.encoded import len2weight as len2weight
from vlm.core.sample.media import image_size, load_image, load_video
from vlm.core.sample.positions import positions
from vlm.core.sample.records import ImagePart, Medium, Message, Part, Sample, text
from vlm.core.sample.tiling import ImageRule
from vlm.core.sample.tokenizer import Tokenizer, as_tokenizer

GROUNDING = frozenset({"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"})
"""Special tokens that count as content: published data and models write them in questions and answers."""

BENCHMARK_FRAME = "Frame{}: "

Strides = float | Sequence[float] | Callable[[int], Sequence[float]] | None
"""Positions per tile: one number, one per image, a function of the number of images, or None for 0, 1, 2, ..."""


@dataclass(frozen=True)
class ImageTokenIds:
    """Ids around and in place of an image. LLaVA has no `start` and `end`, and a `context` outside the vocabulary.

    >>> ImageTokenIds.internvl(load_tokenizer("pretrained/InternVL2-2B"))    # doctest: +SKIP
    """

    start: int | None
    context: int
    end: int | None

    @classmethod
    def internvl(cls, tokenizer: Any) -> "ImageTokenIds":
        """Return the ids of `<img>`, `<IMG_CONTEXT>` and `</img>`.

        Raises:
            ConfigError: The vocabulary does not have all three.
        """
        names = ("<img>", "<IMG_CONTEXT>", "</img>")
        ids = [as_tokenizer(tokenizer).token_id(name) for name in names]
        if None in ids:
            absent = [name for name, i in zip(names, ids, strict=True) if i is None]
            raise ConfigError(f"the tokenizer has no {', '.join(absent)}", fix="add them and resize the embeddings")
        return cls(*ids)  # type: ignore[arg-type]  # none is None: checked above


LLAVA_IMAGE = ImageTokenIds(None, -200, None)


class Run(NamedTuple):
    """Text that is tokenized as one string, or a special token, or an image.

    `pieces` holds the text with whether each piece is supervised, and `start` says that it opens the whole string;
    otherwise `token` is the special token, or `image` is set.
    """

    pieces: tuple[tuple[str, bool], ...] = ()
    start: bool = False
    token: int | None = None
    supervised: bool = False
    image: bool = False


@cache
def _single(token: int | None, supervised: bool) -> Run:
    """Return the run of one special token, or of an image (None)."""
    return Run(token=token, supervised=supervised, image=token is None)


class SampleEncoder:
    """Encodes samples of one model family as ids, labels, positions and pixels.

    Args:
        tokenizer: Ours, or one of transformers.
        template: A chat template or its name.
        image_rule: How an image becomes tiles.
        tokens_per_tile: Context tokens of one tile.
        image_tokens: The ids around and in place of an image.
        system: Replaces the template's system text.
        segments: Number of frames taken from a video.

    >>> ids = ImageTokenIds.internvl(tokenizer)                                     # doctest: +SKIP
    >>> encoder = SampleEncoder(tokenizer, "internlm2-chat", rule, 256, ids)        # doctest: +SKIP
    >>> encoder.encode(sample, strides=64).input_ids                                # doctest: +SKIP
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | Template,
        image_rule: ImageRule,
        tokens_per_tile: int,
        image_tokens: ImageTokenIds,
        system: str | None = None,
        *,
        segments: int = 8,
    ):
        self.tokenizer: Tokenizer = as_tokenizer(tokenizer)
        self.template = get_template(template)
        self._markup = cache(self.tokenizer.split)  # the few strings of a template
        self.image_rule, self.tokens_per_tile, self.image_tokens = image_rule, tokens_per_tile, image_tokens
        self.system, self.segments = system, segments
        # published: a frame is one tile; as a whole image it is any image
        one = {} if image_rule.kind == "whole" else {"min_tiles": 1, "max_tiles": 1}
        self._frame_rule = image_rule.model_copy(update=one)

    load_frames, read_size = staticmethod(load_video), staticmethod(image_size)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end a generated answer."""
        return [i for name in self.template.stop if (i := self.tokenizer.token_id(name)) is not None]

    def encode(
        self,
        sample: Sample,
        strides: Strides = None,
        max_length: int | None = None,
        generation_prompt: bool = False,
        *,
        pixels: bool = True,
    ) -> Encoded:
        """Encode one sample.

        Supervised are each answer and the token that ends it. The beginning-of-sequence token, system text, questions,
        headers and images never are (OpenGVLab/V2PE, OpenGVLab/InternVL, alibaba/conv-llava).

        Args:
            sample: The record.
            strides: Positions per tile: one number, one per image, a function of the number of images, or None.
            max_length: Cut off tokens beyond this length; only text may be cut.
            generation_prompt: End with the header of the answer.
            pixels: False reads image sizes from the headers and decodes nothing but videos.

        Raises:
            MediaError: An image or video cannot be decoded.
            DataError: `max_length` would cut image tokens, or strides do not match the images; the message names the
                sample.
        """
        where = sample.where or sample.id
        spans = render(
            frames_as_images(sample.messages, self.load_frames, self.segments, self.template.frame),
            self.template,
            self.system,
            generation_prompt,
        )
        tiles, arrays, grids = self._images([s.medium for s in spans if s.medium is not None], pixels)
        ids, supervised, layout, image_spans = self._tokens(spans, tiles)
        n_images = len(image_spans)
        per_image = strides(n_images) if callable(strides) else strides
        if isinstance(per_image, int | float):
            per_image = [per_image] * n_images
        if per_image is not None and len(per_image) != n_images:
            raise DataError(f"{where}: {len(per_image)} strides for {n_images} images", expected="one per image")
        brackets = self.image_tokens.start is not None
        position_ids = positions(layout, self.tokens_per_tile, per_image, brackets=brackets)

        n = len(ids)
        truncated = False
        if max_length is not None and n > max_length:
            truncated = True
            needed = max((first + count + brackets for first, count, _ in image_spans), default=0)
            if needed > max_length:
                raise DataError(
                    f"{where}: truncation would cut image tokens ({n} tokens, the last image ends at {needed})",
                    expected=f"images within the first {max_length} tokens",
                    fix="raise max_length, lower max_tiles, or drop the sample",
                )
            n = max_length
        input_ids = np.array(ids[:n], np.int64)
        labels = np.where(np.array(supervised[:n], bool), input_ids, IGNORE)
        return Encoded(
            sample.id,
            input_ids,
            labels,
            position_ids[:n],
            image_spans,
            np.concatenate(arrays) if arrays else None,
            None if per_image is None else [float(s) for s in per_image],
            truncated,
            grids,
        )

    def runs(self, spans: Sequence[Span]) -> Iterator[Run]:
        """Yield spans cut where tokenizing starts afresh: at special tokens and images.

        Text between two of them is one string, as published. Which of its tokens are supervised follows from the
        characters where they begin; no part of the string is tokenized twice.
        """
        pending: list[tuple[str, bool]] = []
        start = True
        for span in spans:
            for piece in self._pieces(span):
                if isinstance(piece, str):
                    pending.append((piece, span.supervised))
                    continue
                if pending:
                    yield Run(tuple(pending), start)
                    pending.clear()
                yield _single(piece, span.supervised)
                # LLaVA tokenizes the text behind an image as a separate string
                start = piece is None and self.image_tokens.start is None
        if pending:
            yield Run(tuple(pending), start)

    def _pieces(self, span: Span) -> Sequence[int | str | None]:
        """Return text as strings, special tokens as ids, an image as None."""
        if span.text is None or (not span.markup and "<" not in span.text):
            return (span.text,)
        return self._markup(span.text) if span.markup else self.tokenizer.split(span.text, GROUNDING)

    def tokenized(self, run: Run) -> tuple[list[int], list[bool]]:
        """Return the ids of a run of text, and whether each is supervised."""
        ends = list(accumulate(len(piece) for piece, _ in run.pieces))
        tokens = self.tokenizer.tokenize("".join(piece for piece, _ in run.pieces), run.start)
        owners = np.searchsorted(ends, [at for _, at in tokens], side="right").clip(max=len(ends) - 1)
        return [i for i, _ in tokens], [run.pieces[owner][1] for owner in owners]

    def _tokens(
        self, spans: Sequence[Span], tiles: Sequence[int]
    ) -> tuple[list[int], list[bool], list[tuple[str, int]], list[tuple[int, int, int]]]:
        """Return ids, whether each is supervised, the layout for positions, and the image spans."""
        ids: list[int] = [self.tokenizer.bos_id] if self.tokenizer.add_bos else []  # type: ignore[list-item]
        supervised = [False] * len(ids)
        layout: list[tuple[str, int]] = []
        image_spans: list[tuple[int, int, int]] = []
        n_layout, remaining, mark = 0, iter(tiles), self.image_tokens
        brackets = mark.start is not None
        for run in self.runs(spans):
            if run.image:
                n_tiles = next(remaining)
                n_context = n_tiles * self.tokens_per_tile
                layout += [("text", len(ids) - n_layout), ("image", n_tiles)]
                image_spans.append((len(ids) + brackets, n_context, n_tiles))
                block = [mark.start] * brackets + [mark.context] * n_context + [mark.end] * brackets
                ids += block  # type: ignore[arg-type]
                supervised += [False] * len(block)
                n_layout = len(ids)
            elif run.token is not None:
                ids.append(run.token)
                supervised.append(run.supervised)
            else:
                more, learned = self.tokenized(run)
                ids += more
                supervised += learned
        layout.append(("text", len(ids) - n_layout))
        return ids, supervised, layout, image_spans

    def _images(
        self, media: Sequence[Medium], pixels: bool
    ) -> tuple[list[int], list[np.ndarray], tuple[tuple[int, int], ...] | None]:
        """Return the tiles of each image, the tiles themselves with `pixels`, and the grids of whole images."""
        tiles, arrays = [], []
        grids: list[tuple[int, int]] = []
        for medium in media:
            assert medium["type"] == "image", "a video is frames by now"
            rule = self._frame_rule if medium.get("frame") else self.image_rule
            files = medium.get("together", [medium["path"]])
            if pixels:
                pictures = [medium["image"]] if "image" in medium else [load_image(file) for file in files]
                grids += [rule.plan(*picture.size).grid for picture in pictures]
                cut = [rule.apply(picture) for picture in pictures]
                arrays += cut
                tiles.append(sum(len(array) for array in cut))
            else:
                sizes = [medium["image"].size] if "image" in medium else [self.read_size(file) for file in files]
                plans = [rule.plan(*size) for size in sizes]
                grids += [plan.grid for plan in plans]
                tiles.append(sum(plan.n_tiles for plan in plans))
        return tiles, arrays, tuple(grids) if self.image_rule.kind == "whole" else None


def frames_as_images(
    messages: Sequence[Message], load: Callable[..., Sequence[Image.Image]], segments: int, label: str = BENCHMARK_FRAME
) -> list[Message]:
    """Return messages with each video replaced by lines such as `Frame1: <image>` (published inference style).

    Args:
        messages: Messages with or without videos.
        load: `load(path, frames, clip)` returns the RGB frames of a video.
        segments: Frames of a video whose part does not name a number, as benchmarks do.
        label: Text before a frame of such a video; the evaluators of all families write `Frame1: `.
    """
    expanded: list[Message] = []
    for message in messages:
        content: list[Part] = []
        for i, part in enumerate(message["content"]):
            if part["type"] != "video":
                content.append(part)
                continue
            following = message["content"][i + 1 : i + 2]
            frames = load(part["path"], part.get("frames", segments), part.get("clip"))
            mark = BENCHMARK_FRAME if "frames" in part else label
            for k, frame in enumerate(frames, 1):
                content += [text(mark.format(k)), picture_part(frame, frame=True), text("\n")]
            # a record's text after <video> opens with a newline, which then ends the last frame's line
            if following and following[0]["type"] == "text" and following[0]["text"].startswith("\n"):
                content.pop()
        expanded.append({**message, "content": content})
    return expanded


def picture_part(picture: Image.Image, *, frame: bool = False) -> ImagePart:
    """Return an image part that holds an RGB picture instead of a path; with `frame` it is always one tile."""
    return {"type": "image", "path": "", "image": picture, "frame": frame}


def combined_part(paths: Sequence[str | Path]) -> ImagePart:
    """Return one part for several pictures: one `<img>` block with the tiles of all (published combined mode)."""
    return {"type": "image", "path": str(paths[0]), "together": [str(path) for path in paths]}
