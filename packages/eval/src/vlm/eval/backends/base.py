"""What an evaluation asks of a model: the `Backend` protocol, its replies and its errors.

A checkpoint in this process, a server, a harness, a fake in tests: each is a class with these members, and the
evaluation knows no more of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from vlm.core.errors import DataError, VlmError
from vlm.core.sample.records import Message, Part


class Stopped(Exception):
    """The model can give no more answers; `error` is what to show.

    No `VlmError` on purpose: it ends the evaluation, with its answers kept, instead of becoming the outcome of each
    item.
    """

    def __init__(self, error: VlmError):
        super().__init__(str(error))
        self.error = error


class Refused(DataError):
    """A question that is not answered on purpose; its outcome is `refused`."""


class NoAnswer(DataError):
    """A reply that holds no answer, such as reasoning without an end; its outcome is `unanswered`."""


class TooLong(Refused):
    """A prompt longer than the limit in force."""


@dataclass(frozen=True)
class Drawing:
    """How a backend draws tokens instead of taking the likeliest one.

    A prompt with one seed gets one reply, whatever else is in its batch. `top_p`: of the likeliest tokens of this mass.
    """

    temperature: float
    top_p: float | None = None
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The part of a backend's `settings`: what determines the replies."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class BackendReply(Protocol):
    """A reply: its text without special tokens, and whether the model ended it."""

    @property
    def text(self) -> str:
        """The text of the reply."""

    @property
    def finished(self) -> bool:
        """Whether a stop token came within the budget."""


class Backend(Protocol):
    """A model that answers encoded prompts, greedily unless its `Drawing` says otherwise.

    `family` chooses the prompts of the tables. `fingerprint` identifies the weights by content, `settings` everything
    else that can change an answer (strides, positions, tiles, dtype, template, …) except the batch: answers must not
    depend on who shares the batch.

    >>> backend: Backend = NativeBackend(Checkpoint("pretrained/V2PE"))  # doctest: +SKIP
    >>> encoded = backend.encode("item-1", [{"role": "user", "content": [text("Hello")]}])  # doctest: +SKIP
    >>> backend.answer([encoded], max_new_tokens=16, min_new_tokens=1)[0].text  # doctest: +SKIP
    """

    family: str
    fingerprint: str
    settings: dict[str, Any]

    def count_tokens(self, text: str) -> int:
        """Return the length of a text, for benchmarks that cut their context to a budget."""

    def prompt(self, messages: list[Message]) -> str:
        """Return the rendered prompt, media as placeholders. Cheap: reads no pixels."""

    def cost(self, messages: list[Message]) -> float:
        """Estimate the length of the prompt in tokens, from file headers alone."""

    def encode(self, item_id: str, messages: list[Message]) -> Any:
        """Return the model input of one item, of any type that `answer` takes.

        Raises:
            DataError: The item cannot be encoded; TooLong when it exceeds the limit.
        """

    def answer(self, encoded: Sequence[Any], *, max_new_tokens: int, min_new_tokens: int) -> Sequence[BackendReply]:
        """Return one reply for each input, in order."""

    def recover(self) -> None:
        """Give memory back after an out-of-memory error."""


def text_with_placeholders(parts: Iterable[Part]) -> str:
    """Return the text of parts in reading order, with `<image>` and `<video>` for the media.

    >>> text_with_placeholders([{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}])
    '<image>What is it?'
    """
    return "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in parts)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception of Python, torch (CPU or CUDA) or a driver means that memory ran out."""
    message = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message))
    )
