"""What the runner asks of a model, and the native answer to it.

Another engine (a server, a harness, a fake in tests) is another class with these members; the runner knows no more.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from vlm.core.errors import DataError, MediaError
from vlm.core.media import image_size
from vlm.core.records import Message


class TooLong(DataError):
    """A prompt longer than the limit in force; its outcome is `refused`."""


class Reply(Protocol):
    """`text` without special tokens, `finished` when a stop token came within the budget."""

    text: str
    finished: bool


class Backend(Protocol):
    """A model that answers encoded prompts greedily.

    `fingerprint` identifies the weights by content, `settings` everything else that can change an answer (strides,
    positions, tiles, dtype, template, …) except the batch: answers must not depend on who shares the batch.
    """

    fingerprint: str
    settings: dict[str, Any]

    def prompt(self, messages: list[Message]) -> str:
        """The rendered prompt, media as placeholders. Cheap: reads no pixels."""

    def cost(self, messages: list[Message]) -> float:
        """Estimated prompt length in tokens, from file headers alone."""

    def encode(self, item_id: str, messages: list[Message]) -> Any:
        """The model input of one item. Raises DataError, and TooLong beyond the limit."""

    def answer(self, encoded: Sequence[Any], max_new_tokens: int) -> Sequence[Reply]:
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


class NativeBackend:
    """A checkpoint run by `vlm.models`. Torch is imported here, weights are read at the first question: a run that
    finds all its answers never loads them.

    `stride` "model" is the checkpoint's own, None one position per token. `tiles` replaces the tile budget of families
    that cut tiles. `max_length` refuses longer prompts (tokens). `device` "auto" is CUDA where there is one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        stride: float | str | None = "model",
        positions: str = "exact",
        tiles: int | None = None,
        max_length: int | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ):
        import torch

        from vlm.models.processor import load_processor
        from vlm.models.weights import find_checkpoint, fingerprint

        self.path = find_checkpoint(path)
        processor = load_processor(self.path)
        tiled = tiles is not None and processor.spec.image_rule.kind == "tiles"
        self.processor = processor.with_image_rule(max_tiles=tiles) if tiled else processor
        self.fingerprint = fingerprint(self.path)
        self.stride = processor.spec.strides if stride == "model" else stride
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.dtype, self.positions, self.max_length = dtype, positions, max_length
        self._model: Any = None
        self.settings = {
            "family": processor.family,
            "template": processor.spec.template,
            "image_rule": self.processor.spec.image_rule.model_dump(mode="json"),
            "stride": self.stride,
            "positions": positions,
            "max_length": max_length,
            "dtype": dtype,
            "beams": 1,
        }

    def prompt(self, messages: list[Message]) -> str:
        from vlm.core.chat import prompt_text

        spec = self.processor.spec
        return prompt_text(messages, spec.template, spec.system, generation_prompt=True)

    def cost(self, messages: list[Message]) -> float:
        parts = [part for message in messages for part in message["content"]]
        characters = sum(len(part["text"]) for part in parts if part["type"] == "text")
        tiles = sum(self._tiles(part) for part in parts if part["type"] != "text")
        return characters / 4 + tiles * self.processor.tokens_per_tile

    def _tiles(self, part: dict[str, Any]) -> int:
        if part["type"] == "video":
            return 16
        try:
            return self.processor.spec.image_rule.count(*image_size(part["path"]))
        except MediaError:  # `encode` meets the same file and records it as this item's outcome
            return 1

    def encode(self, item_id: str, messages: list[Message]) -> Any:
        encoded = self.processor.encode(messages, strides=self.stride, id=item_id)
        if self.max_length and len(encoded.input_ids) > self.max_length:
            raise TooLong(f"{len(encoded.input_ids):,} tokens", expected=f"at most {self.max_length:,} (--max-length)")
        return encoded

    def answer(self, encoded: Sequence[Any], max_new_tokens: int) -> Sequence[Reply]:
        from vlm.models.generate import answer
        from vlm.models.weights import load_model

        if self._model is None:
            self._model = load_model(self.path, device=self.device, dtype=self.dtype).eval()
        return answer(self._model, self.processor, list(encoded), max_new_tokens=max_new_tokens)

    def recover(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
