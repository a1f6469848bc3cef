"""Messages -> model input, with the template, image rule and position rule of one checkpoint.

>>> processor = load_processor("pretrained/InternVL2-2B")                                          # doctest: +SKIP
>>> encoded = processor.encode([user_message("What is this?", [image("cat.png")])])                # doctest: +SKIP
>>> encoded.input_ids.shape, processor.pixels(encoded.pixels).shape                                # doctest: +SKIP
((1834,), torch.Size([7, 3, 448, 448]))
"""

import math
from copy import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm.core.errors import ConfigError
from vlm.core.sample.encode import ImageTokenIds, SampleEncoder, Strides
from vlm.core.sample.encoded import Encoded
from vlm.core.sample.records import Message, Sample
from vlm.core.sample.tokenizer import load_tokenizer
from vlm.models.checkpoint.agreement import check_agreement
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.specs import ModelSpec
from vlm.models.vlm import make_model

FROM_MODEL = "model"
"""Value of `strides`: the strides that the checkpoint was trained for."""

FRAMES = 8
"""Frames taken from a video (quick start of the published models)."""


class Processor:
    """Encodes messages for one model, and normalizes its pixels.

    Args:
        spec: the model.
        tokenizer_folder: folder with tokenizer files.
        frames: number of frames taken from a video, each one tile.

    Raises:
        CheckpointError: the folder has no tokenizer, or one that does not fit the model.
        UnknownName: the spec names an unknown template.
        ConfigError: `frames` is below 1.
    """

    def __init__(self, spec: ModelSpec, tokenizer_folder: Path, *, frames: int = FRAMES):
        if frames < 1:
            raise ConfigError(f"{frames} frames of a video", expected="at least 1")
        self.spec, self.frames = spec, frames
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self.template = check_agreement(spec, self.tokenizer, Path(tokenizer_folder))
        self.tokens_per_tile = tokens_of_tile(spec)
        self.encoder = self.make_encoder()

    def make_encoder(self) -> SampleEncoder:
        """Return the encoder of samples for the current spec."""
        ids = self.spec.image_tokens
        token_ids = ImageTokenIds(
            start=self.tokenizer.token_id(ids.start), context=ids.context_id, end=self.tokenizer.token_id(ids.end)
        )
        return SampleEncoder(
            self.tokenizer,
            self.template,
            self.spec.image_rule,
            self.tokens_per_tile,
            token_ids,
            self.spec.system,
            segments=self.frames,
        )

    @property
    def family(self) -> str:
        """Return the name of the family, e.g. `convllava`."""
        return self.spec.family

    def encode(
        self,
        messages: list[Message],
        *,
        strides: Strides | str = FROM_MODEL,
        generation_prompt: bool = True,
        max_length: int | None = None,
        id: str = "prompt",
    ) -> Encoded:
        """Return ids, labels, exact positions and uint8 tiles of messages with media paths.

        Args:
            messages: the conversation.
            strides: positions per tile: one for all images, one for each (or a function of their number), None for
                0, 1, 2, ..., "model" for the checkpoint's default.
            generation_prompt: end with the start of an assistant's turn.
            max_length: greatest number of tokens.
            id: name in error messages.
        """
        return self.encoder.encode(
            Sample(id, messages, id),
            strides=self.resolve_strides(strides),
            max_length=max_length,
            generation_prompt=generation_prompt,
        )

    def resolve_strides(self, strides: Strides | str) -> Strides:
        """Return the checkpoint's strides for "model", else the given ones.

        Raises:
            CheckpointError: a checkpoint with V2PE that names no stride. ConfigError: anything else.
        """
        if strides == FROM_MODEL:
            self.spec.check_stride()
            return self.spec.strides
        if isinstance(strides, str) or (isinstance(strides, int | float) and not 0 < strides < math.inf):
            raise ConfigError(f"strides {strides!r}", expected=f"positions per tile above 0, None, or {FROM_MODEL!r}")
        return strides

    def pixels(self, tiles: NDArray[np.uint8]) -> Tensor:
        """Normalize tiles uint8 [tiles, S, S, 3] -> float32 [tiles, 3, S, S]."""
        return torch.from_numpy(self.spec.image_rule.normalize(tiles))

    @property
    def stop_ids(self) -> list[int]:
        """Return the ids that end an answer: the template's, and the tokenizer's end of sequence."""
        return sorted({*self.encoder.stop_ids, *([self.tokenizer.eos_id] if self.tokenizer.eos_id is not None else [])})

    def with_frames(self, frames: int) -> "Processor":
        """Return a processor that takes another number of frames from a video. Raises ConfigError below 1."""
        if frames < 1:
            raise ConfigError(f"{frames} frames of a video", expected="at least 1")
        other = copy(self)
        other.frames = frames
        other.encoder = other.make_encoder()
        return other

    def with_image_rule(self, **changes: object) -> "Processor":
        """Return a processor with another image rule, e.g. `with_image_rule(max_tiles=24)`. Raises ConfigError."""
        return self._with_spec(self.spec.model_copy(update={"image_rule": self.spec.image_rule.changed(**changes)}))

    def with_named_rule(self, name: str | None) -> "Processor":
        """Return a processor with an image rule by its name, see `ModelSpec.with_image_rule`; None changes nothing."""
        return self if name is None else self._with_spec(self.spec.with_image_rule(name))

    def _with_spec(self, spec: ModelSpec) -> "Processor":
        other = copy(self)
        if (spec.image_rule.kind, spec.image_rule.size) != (self.spec.image_rule.kind, self.spec.image_rule.size):
            other.tokens_per_tile = tokens_of_tile(spec)
        other.spec = spec
        other.encoder = other.make_encoder()
        return other


def tokens_of_tile(spec: ModelSpec) -> int:
    """Return the context tokens of one tile, from the model itself: of a timm trunk, arithmetic only assumes them."""
    with torch.device("meta"):
        return make_model(spec).tokens_per_tile


def load_processor(
    path: str | Path, *, max_tiles: int | None = None, frames: int = FRAMES, image_rule: str | None = None
) -> Processor:
    """Return the processor of a checkpoint in any format, with tokenizer files in its folder.

    Args:
        path: a folder, or a name below `pretrained/`.
        max_tiles: tiles per image, thumbnail not counted; under the image rule `whole` its tokens.
        frames: frames per video.
        image_rule: another rule than the checkpoint's, by a name of `ModelSpec.with_image_rule`.

    Raises:
        CheckpointError: no such folder, no tokenizer in it, or one that does not fit the model.
        UnknownName: the configuration names an unknown template.
        ConfigError: `max_tiles` for a family that makes one square of an image; an image rule that does not fit.
    """
    folder = find_checkpoint(path)
    processor = Processor(read_layout(folder).spec, folder, frames=frames).with_named_rule(image_rule)
    if max_tiles is None:
        return processor
    if not processor.spec.image_rule.limited:
        kind = processor.spec.image_rule.kind
        raise ConfigError(
            f"max_tiles {max_tiles}, but this checkpoint makes one square of an image (rule `{kind}`)",
            expected="a checkpoint with dynamic tiles, as InternVL2 and V2PE are",
            fix="leave it out, or add the image rule `whole` for a ConvLLaVA",
        )
    return processor.with_image_rule(max_tiles=max_tiles)
