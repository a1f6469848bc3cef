"""Messages -> model input, with the template, image rule and position rule of one checkpoint."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlm.core.chat import TEMPLATES
from vlm.core.encode import Encoded, Encoder, Strides
from vlm.core.encode import ImageTokens as TokenIds
from vlm.core.errors import ConfigError
from vlm.core.records import Message, Sample
from vlm.core.tokenizer import load_tokenizer
from vlm.models.layouts import read_layout
from vlm.models.specs import ModelSpec
from vlm.models.vlm import make_model
from vlm.models.weights import find_checkpoint

FROM_MODEL = "model"
"""Value of `strides` that means: what the checkpoint was trained for."""


class Processor:
    """`processor.encode(messages)` -> Encoded; `processor.pixels(encoded)` -> float tensor for the encoder."""

    def __init__(self, spec: ModelSpec, tokenizer_folder: Path):
        self.spec = spec
        self.template = TEMPLATES[spec.template]
        self.tokenizer = load_tokenizer(tokenizer_folder)
        with torch.device("meta"):
            self.tokens_per_tile = make_model(spec).tokens_per_tile
        self.encoder = self.make_encoder()

    def make_encoder(self) -> Encoder:
        """The encoder of the present spec."""
        ids = self.spec.image_tokens
        token_ids = TokenIds(
            start=self.tokenizer.token_id(ids.start), context=ids.context_id, end=self.tokenizer.token_id(ids.end)
        )
        return Encoder(
            self.tokenizer, self.template, self.spec.image_rule, self.tokens_per_tile, token_ids, self.spec.system
        )

    @property
    def family(self) -> str:
        """Name of the family, e.g. `convllava`."""
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
        """Messages with media paths -> ids, labels, exact positions and uint8 tiles.

        `strides`: positions per tile; one for all images, one for each (or a function of their number), None for
        arange, "model" for the checkpoint's own default.
        """
        if isinstance(strides, str):
            if strides != FROM_MODEL:
                raise ConfigError(f"strides {strides!r}", expected=f"numbers, None or {FROM_MODEL!r}")
            strides = self.spec.strides
        return self.encoder.encode(
            Sample(id, messages, id),
            strides=strides,
            max_length=max_length,
            generation_prompt=generation_prompt,
        )

    def pixels(self, tiles: np.ndarray) -> Tensor:
        """uint8 [tiles, S, S, 3] -> float32 [tiles, 3, S, S], normalised."""
        return torch.from_numpy(self.spec.image_rule.normalise(tiles))

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the template's, and the tokenizer's end of sequence."""
        return sorted({*self.encoder.stop_ids, *([self.tokenizer.eos_id] if self.tokenizer.eos_id is not None else [])})

    def with_image_rule(self, **changes: object) -> "Processor":
        """A processor with another image rule, e.g. `with_image_rule(max_tiles=24)`."""
        rule = self.spec.image_rule.model_copy(update=changes)
        other = object.__new__(Processor)
        other.__dict__ = dict(self.__dict__)
        other.spec = self.spec.model_copy(update={"image_rule": rule})
        other.encoder = other.make_encoder()
        return other


def load_processor(path: str | Path) -> Processor:
    """The processor of a checkpoint folder (any known layout) that holds tokenizer files."""
    folder = find_checkpoint(path)
    return Processor(read_layout(folder).spec, folder)
