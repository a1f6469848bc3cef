"""What the runner asks of a model, and the native answer to it.

Another engine (a server, a harness, a fake in tests) is another class with these members; the runner knows no more.
"""

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from vlm.core.errors import DataError, HardwareError, MediaError, VlmError
from vlm.core.sample.chat import prompt_text
from vlm.core.sample.encode import Encoded
from vlm.core.sample.media import image_size
from vlm.core.sample.positions import positions
from vlm.core.sample.records import Message


class Stopped(Exception):
    """The model can answer nothing (any more). No VlmError on purpose: it ends the run, with its answers kept, instead
    of becoming the outcome of each item. `error` is what to show."""

    def __init__(self, error: VlmError):
        super().__init__(str(error))
        self.error = error


class Refused(DataError):
    """A question that is not answered on purpose; its outcome is `refused`."""


class TooLong(Refused):
    """A prompt longer than the limit in force."""


class Reply(Protocol):
    """`text` without special tokens, `finished` when a stop token came within the budget."""

    @property
    def text(self) -> str: ...

    @property
    def finished(self) -> bool: ...


class Backend(Protocol):
    """A model that answers encoded prompts greedily.

    `fingerprint` identifies the weights by content, `settings` everything else that can change an answer (strides,
    positions, tiles, dtype, template, …) except the batch: answers must not depend on who shares the batch.
    """

    family: str
    fingerprint: str
    settings: dict[str, Any]

    def count_tokens(self, text: str) -> int:
        """Length of a text, for benchmarks that cut their context to a budget."""

    def prompt(self, messages: list[Message]) -> str:
        """The rendered prompt, media as placeholders. Cheap: reads no pixels."""

    def cost(self, messages: list[Message]) -> float:
        """Estimated prompt length in tokens, from file headers alone."""

    def encode(self, item_id: str, messages: list[Message]) -> Any:
        """The model input of one item. Raises DataError, and TooLong beyond the limit."""

    def answer(self, encoded: Sequence[Any], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[Reply]:
        """One reply for each input, in order."""

    def recover(self) -> None:
        """Give memory back after an out-of-memory error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, torch (CPU or CUDA) or a driver means that memory ran out."""
    message = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message))
    )


class Checkpoint:
    """A checkpoint folder shared by several backends. Importing torch happens here; the weights are read at the first
    question, so a run that finds all its answers on the disk never loads them.

    `device` "auto" is CUDA where there is one. `quantize`, `offload`, `attention`: as of `load_model`; all but those
    that were left alone are in `settings`.

    Raises:
        CheckpointError: no such folder, or no tokenizer in it. ConfigError, HardwareError: an impossible placement.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        quantize: str | None = None,
        offload: str | None = None,
        attention: str = "auto",
    ):
        import torch

        from vlm.models.attention import check_name
        from vlm.models.checkpoint.load import fingerprint
        from vlm.models.checkpoint.locate import find_checkpoint
        from vlm.models.checkpoint.placement import make_placement
        from vlm.models.processor import load_processor

        check_name(attention)
        self.path = find_checkpoint(path)
        self.processor = load_processor(self.path)
        self.fingerprint = fingerprint(self.path)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.dtype = dtype
        self.how: dict[str, Any] = {"quantize": quantize, "offload": offload, "attention": attention}
        make_placement(self.processor.spec, self.device, dtype, quantize=quantize, offload=offload)  # only to check it
        # what is not named is no part of the key: answers of earlier runs stay valid
        self.settings = {"dtype": dtype} | {name: how for name, how in self.how.items() if how not in (None, "auto")}

    @cached_property
    def model(self) -> Any:
        """The model in evaluation mode. Raises Stopped when it cannot be loaded."""
        from vlm.models.checkpoint.load import load_model

        try:
            return load_model(self.path, device=self.device, dtype=self.dtype, **self.how)
        except VlmError as error:
            raise Stopped(error) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            found = f"{self.path} does not fit into the memory of {self.device}"
            raise Stopped(HardwareError(found, fix="--dtype bfloat16, --quantize 4bit or --offload cpu")) from error


class NativeBackend:
    """A checkpoint run by `vlm.models`.

    `stride` None is one position per token. `positions` "float32" rounds them as the published code does.
    `image_rule` replaces keys of the family's image rule, e.g. `{"max_tiles": 18}`. `max_length` refuses longer
    prompts (tokens).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        stride: float | None = None,
        positions: str = "exact",
        image_rule: dict[str, Any] | None = None,
        max_length: int | None = None,
    ):
        processor = checkpoint.processor
        self.checkpoint = checkpoint
        self.processor = processor.with_image_rule(**image_rule) if image_rule else processor
        self.family, self.fingerprint = processor.family, checkpoint.fingerprint
        self.stride, self.positions, self.max_length = stride, positions, max_length
        self.settings = {
            "template": processor.spec.template,
            "system": processor.spec.system,
            "image_rule": self.processor.spec.image_rule.model_dump(mode="json"),
            "stride": stride,
            "positions": positions,
            "max_length": max_length,
            "beams": 1,
            **checkpoint.settings,
        }

    def count_tokens(self, text: str) -> int:
        return len(self.processor.tokenizer.encode(text))

    def prompt(self, messages: list[Message]) -> str:
        spec = self.processor.spec
        return prompt_text(messages, spec.template, spec.system, generation_prompt=True)

    def cost(self, messages: list[Message]) -> float:
        parts = [part for message in messages for part in message["content"]]
        characters = sum(len(part["text"]) for part in parts if part["type"] == "text")
        tiles = sum(self._tiles(part) for part in parts if part["type"] != "text")
        return characters / 4 + tiles * self.processor.tokens_per_tile

    def _tiles(self, part: dict[str, Any]) -> int:
        if part["type"] == "video":
            return part.get("frames", self.processor.encoder.segments)
        try:
            return self.processor.spec.image_rule.count(*image_size(part["path"]))
        except MediaError:  # `encode` meets the same file and records it as this item's outcome
            return 1

    def encode(self, item_id: str, messages: list[Message]) -> Encoded:
        encoded = self.processor.encode(messages, strides=self.stride, id=item_id)
        if self.max_length and len(encoded) > self.max_length:
            raise TooLong(f"{len(encoded):,} tokens", expected=f"at most {self.max_length:,} (--max-length)")
        return self._float32(encoded) if self.positions == "float32" else encoded

    def _float32(self, encoded: Encoded) -> Encoded:
        """The same input with positions rounded as published."""
        brackets = self.processor.spec.image_tokens.start is not None
        layout: list[tuple[str, int]] = []
        end = 0
        for first, count, tiles in encoded.image_spans:
            layout += [("text", first - brackets - end), ("image", tiles)]
            end = first + count + brackets
        layout.append(("text", len(encoded) - end))
        rounded = positions(layout, self.processor.tokens_per_tile, encoded.strides, True, brackets=brackets)
        return replace(encoded, position_ids=rounded)

    def answer(self, encoded: Sequence[Encoded], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[Reply]:
        from vlm.models.generation.batch import answer

        limits = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        return answer(self.checkpoint.model, self.processor, list(encoded), **limits)

    def recover(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
