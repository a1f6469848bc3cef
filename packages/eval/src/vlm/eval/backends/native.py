"""A checkpoint in this process as a backend.

checkpoint = Checkpoint("pretrained/V2PE", device="cuda", dtype="bfloat16")
backend = NativeBackend(checkpoint, stride=64, image_rule={"max_tiles": 18})
"""

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vlm.core.errors import HardwareError, MediaError, VlmError
from vlm.core.sample.chat import prompt_text
from vlm.core.sample.encoded import Encoded
from vlm.core.sample.media import image_size
from vlm.core.sample.positions import positions
from vlm.core.sample.records import Medium, Message
from vlm.eval.backends.base import BackendReply, Drawing, Stopped, TooLong, is_out_of_memory

if TYPE_CHECKING:
    from vlm.models.features import TileFeatures
    from vlm.models.processor import Processor
    from vlm.models.vlm import VisionLanguageModel


class Checkpoint:
    """A checkpoint folder that several backends share.

    Torch is imported when one is made. The weights are read at the first question: an evaluation that finds all its
    answers on the disk never loads them.

    Args:
        path: Checkpoint folder, in any layout that `load_model` reads.
        device: A torch device; "auto" is CUDA where there is one.
        dtype: Precision of the weights.
        quantize: As in `load_model`.
        offload: As in `load_model`.
        image_rule: Another image rule than the checkpoint's, as in `load_processor`.
        attention: As in `load_model`.
        kv_dtype: As in `load_model`.
        kv_offload: As in `load_model`.

    Raises:
        CheckpointError: No such folder, or no tokenizer in it.
        ConfigError: A placement that cannot be.
        HardwareError: A placement whose hardware this machine does not have.

    >>> checkpoint = Checkpoint("pretrained/V2PE", device="cuda", dtype="bfloat16")  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        quantize: str | None = None,
        offload: str | None = None,
        image_rule: str | None = None,
        attention: str = "auto",
        kv_dtype: str = "auto",
        kv_offload: bool = False,
    ):
        import torch

        from vlm.models.attention import check_name
        from vlm.models.checkpoint.load import fingerprint
        from vlm.models.checkpoint.locate import find_checkpoint
        from vlm.models.checkpoint.placement import make_placement, make_storage
        from vlm.models.processor import load_processor

        check_name(attention)
        self.path = find_checkpoint(path)
        self.processor = load_processor(self.path, image_rule=image_rule)
        self.fingerprint = fingerprint(self.path)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.dtype = dtype
        self.features: TileFeatures | None = None
        self.how: dict[str, Any] = {"quantize": quantize, "offload": offload, "attention": attention}
        self.how |= {"kv_dtype": kv_dtype, "kv_offload": kv_offload}
        make_placement(self.processor.spec, self.device, dtype, quantize=quantize, offload=offload)  # only to check it
        make_storage(self.device, kv_dtype, kv_offload)
        # a setting left at its default is no part of the key, so that answers of earlier runs stay valid; nor is where
        # keys and values are kept, which changes no number
        changed = {name: how for name, how in self.how.items() if how not in (None, "auto") and name != "kv_offload"}
        self.settings = {"dtype": dtype} | changed

    @cached_property
    def model(self) -> "VisionLanguageModel":
        """The model in evaluation mode.

        Raises:
            Stopped: It cannot be loaded.
        """
        from vlm.models.checkpoint.load import load_model

        try:
            return load_model(self.path, device=self.device, dtype=self.dtype, infer=True, **self.how)
        except VlmError as error:
            raise Stopped(error) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            found = f"{self.path} does not fit into the memory of {self.device}"
            raise Stopped(HardwareError(found, fix="--dtype bfloat16, --quantize 4bit or --offload cpu")) from error

    def features_of(self, processor: "Processor") -> "TileFeatures":
        """Return the features of the tiles that were encoded last: questions about one picture encode it once.

        Another image rule may normalize pixels in another way, so it starts anew.
        """
        from vlm.models.features import TileFeatures

        known = self.features
        if known is None or known.processor.spec.image_rule != processor.spec.image_rule:
            known = self.features = TileFeatures(self.model, processor)
        return known


class NativeBackend:
    """A checkpoint that answers by itself, run by `vlm.models`.

    Args:
        checkpoint: The checkpoint; several backends may share it.
        stride: V2PE stride of every image; None is one position per token.
        positions: "exact"; "float32" to round positions as the published code does; "plain-prefill" to count the prompt
            plainly up to its last token, as the published runner of MMLongBench does with V2PE.
        image_rule: Keys to replace in the family's image rule, for example `{"max_tiles": 18}`.
        max_length: Refuse prompts of more tokens than this.
        drawing: How tokens are drawn; None takes the likeliest.

    >>> backend = NativeBackend(checkpoint, stride=64, image_rule={"max_tiles": 18})  # doctest: +SKIP
    >>> backend.answer([backend.encode("1", messages)], max_new_tokens=16, min_new_tokens=1)[0].text  # doctest: +SKIP
    """

    generation_prompt: ClassVar[bool] = True
    """Whether the prompt ends with the start of the assistant's turn."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        stride: float | None = None,
        positions: str = "exact",
        image_rule: dict[str, Any] | None = None,
        max_length: int | None = None,
        drawing: Drawing | None = None,
    ):
        processor = checkpoint.processor
        self.checkpoint = checkpoint
        self.processor = processor.with_image_rule(**image_rule) if image_rule else processor
        self.family, self.fingerprint = processor.family, checkpoint.fingerprint
        self.stride, self.positions, self.max_length, self.drawing = stride, positions, max_length, drawing
        self.max_positions = processor.spec.language.max_positions
        self.settings = {
            "template": processor.spec.template,
            "system": processor.spec.system,
            "image_rule": self.processor.spec.image_rule.model_dump(mode="json"),
            "stride": stride,
            "positions": positions,
            "max_length": max_length,
            "beams": 1,
            **checkpoint.settings,
            **(drawing.settings if drawing else {}),
        }

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of the checkpoint's tokenizer."""
        return len(self.processor.tokenizer.encode(text))

    def prompt(self, messages: list[Message]) -> str:
        """Return the prompt in the checkpoint's chat template, media as placeholders."""
        spec = self.processor.spec
        return prompt_text(messages, spec.template, spec.system, generation_prompt=self.generation_prompt)

    def cost(self, messages: list[Message]) -> float:
        """Estimate tokens: four characters each, and those of the tiles that the image headers announce."""
        parts = [part for message in messages for part in message["content"]]
        characters = sum(len(part["text"]) for part in parts if part["type"] == "text")
        tiles = sum(self._tiles(part) for part in parts if part["type"] != "text")
        return characters / 4 + tiles * self.processor.tokens_per_tile

    def _tiles(self, part: Medium) -> int:
        if part["type"] == "video":
            rule = self.processor.spec.image_rule
            most = rule.max_tiles if rule.kind == "whole" else 1  # of a frame
            return int(part.get("frames", self.processor.encoder.segments)) * most
        try:
            return self.processor.spec.image_rule.count(*image_size(part["path"]))
        except MediaError:  # `encode` meets the same file and records it as this item's outcome
            return 1

    def encode(self, item_id: str, messages: list[Message]) -> Encoded:
        """Return ids, positions and tiles of one item.

        Raises:
            TooLong: More than `max_length` tokens.
            MediaError: An image or video that cannot be decoded.
        """
        encoded = self.processor.encode(
            messages, strides=self.stride, id=item_id, generation_prompt=self.generation_prompt
        )
        if self.max_length and len(encoded) > self.max_length:
            raise TooLong(f"{len(encoded):,} tokens", expected=f"at most {self.max_length:,} (--max-length)")
        if self.positions == "plain-prefill":
            return _plain_prefill(encoded)
        return self._float32(encoded) if self.positions == "float32" else encoded

    def _float32(self, encoded: Encoded) -> Encoded:
        """Return the same input with positions rounded as published."""
        brackets = self.processor.spec.image_tokens.start is not None
        layout: list[tuple[str, int]] = []
        end = 0
        for first, count, tiles in encoded.image_spans:
            layout += [("text", first - brackets - end), ("image", tiles)]
            end = first + count + brackets
        layout.append(("text", len(encoded) - end))
        rounded = positions(layout, self.processor.tokens_per_tile, encoded.strides, True, brackets=brackets)
        return replace(encoded, position_ids=rounded)

    def answer(self, encoded: Sequence[Encoded], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[BackendReply]:
        """Return one reply for each input, in order."""
        from vlm.models.answers import answer
        from vlm.models.generation.drawing import RowDraws

        return answer(
            self.checkpoint.model,
            self.processor,
            list(encoded),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            draws=RowDraws(encoded, **self.drawing.settings) if self.drawing else None,
            known=self.checkpoint.features_of(self.processor),
        )

    def recover(self) -> None:
        """Forget the features that are kept, collect garbage and empty the CUDA cache."""
        import torch

        self.checkpoint.features = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _plain_prefill(encoded: Encoded) -> Encoded:
    """Return the same input with positions 0, 1, 2, ... but the last, from which the reply counts on.

    Source: EdinburghNLP/MMLongBench, which fills the cache without positions (`--do_prefill`) and then gives the last
    token its V2PE position. Measured so, V2PE has its positions in the reply alone.
    """
    places = np.arange(len(encoded), dtype=np.float64)
    places[-1] = encoded.position_ids[-1]
    return encoded if encoded.strides is None else replace(encoded, position_ids=places)
