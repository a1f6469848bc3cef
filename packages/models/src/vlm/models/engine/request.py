"""One request to the engine: its prompt, how tokens are chosen, and what comes back."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from vlm.core.errors import ConfigError, DataError, VlmError
from vlm.core.sample.encoded import Encoded

Ended = Literal["stop", "length", "cancelled", "timeout", "error"]
"""Why a reply ended. `stop`: a stop token or stop text; `length`: `max_new_tokens`."""


class Busy(VlmError):
    """The queue of waiting requests is full, or the engine is shutting down."""


class ContextOverflow(DataError):
    """Prompt and reply together are longer than the engine allows; both counts are in the message."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are chosen.

    Args:
        max_new_tokens: greatest length of the reply.
        temperature: 0 takes the most probable token; above 0 draws.
        top_p: draw from the most probable tokens with this total probability, in (0, 1].
        top_k: draw from that many tokens; 0 is off. 50 is what `vlm chat` and transformers use.
        seed: makes draws repeatable, alone or beside other requests; None takes a new one.
        logprobs: None, or how many alternatives each token comes with.
        stop: texts that end the reply and are not part of it.
        min_new_tokens: number of tokens before which no stop token is chosen.

    Raises:
        ConfigError: a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 50
    seed: int | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        faults = [
            (self.max_new_tokens < 1, f"max_new_tokens {self.max_new_tokens}", "at least 1"),
            (
                not 0 <= self.min_new_tokens <= self.max_new_tokens,
                f"min_tokens {self.min_new_tokens}",
                f"from 0 to max_new_tokens ({self.max_new_tokens})",
            ),
            (not 0 <= self.temperature < float("inf"), f"temperature {self.temperature}", "0 or above"),
            (not 0 < self.top_p <= 1, f"top_p {self.top_p}", "in (0, 1]"),
            (self.top_k < 0, f"top_k {self.top_k}", "0 (off) or above"),
            (self.logprobs is not None and not 0 <= self.logprobs <= 20, f"top_logprobs {self.logprobs}", "0 to 20"),
            (any(not text for text in self.stop), "an empty stop text", "some text"),
        ]
        for fault, found, expected in faults:
            if fault:
                raise ConfigError(found, expected=expected)


@dataclass(frozen=True)
class TokenChoice:
    """A chosen token: id, text, log-probability, and alternatives as (text, log-probability)."""

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """News of a request: new text (may be empty), its tokens, and at the end why it ended."""

    text: str = ""
    tokens: tuple[TokenChoice, ...] = ()
    ended: Ended | None = None
    error: str = ""


@dataclass(eq=False)
class GenerationRequest:
    """A prompt in the engine.

    Args:
        prompt: ends with the start of an assistant's turn; with pixels.
        sampling: how tokens are chosen.
        on_event: called from the engine's thread with each `Event`; must not block.
        deadline: `time.monotonic()` at which the request ends with `timeout`; None for never.

    `cancelled` may be set at any time. `cached_tokens` and the times are filled in by the engine.
    """

    prompt: Encoded
    sampling: Sampling
    on_event: Callable[[Event], None]
    deadline: float | None = None
    cancelled: bool = False
    cached_tokens: int = 0
    new_tokens: int = 0
    submitted: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    finished: float | None = None
