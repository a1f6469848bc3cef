"""The chat-completions protocol: what a request may hold, and how replies and errors look.

Fields that would change a reply and are not supported are refused, never ignored; fields that only label a request are
taken and left alone. Our own fields are under one key, `vlm`. Source: OpenAI's API reference, chat completions.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vlm.cli.server.gate import RequestError as RequestError  # the errors of this protocol
from vlm.models.engine import Sampling, TokenChoice

LABELS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}
"""Fields that do not change the reply."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "reasoning_effort": (None, "none"),
    "web_search_options": (None,),
    "audio": (None,),
    "prediction": (None,),
}
"""Fields that are not supported -> the values with which they ask for nothing."""


StopText = Annotated[str, Field(max_length=1000)]
"""A text that ends the reply: every new token is compared with it."""


class Part(BaseModel):
    """One part of a message: text, image_url or video_url."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None
    image_url: dict[str, Any] | str | None = None
    video_url: dict[str, Any] | str | None = None


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class OwnFields(BaseModel):
    """What the protocol has no field for: V2PE positions, tiles, frames, parts as they are.

    `strides`: positions per tile, null for plain counting, "model" for the checkpoint's default. `exact`: nothing is
    written between the parts of a message, as `vlm eval --backend openai` asks.
    """

    model_config = ConfigDict(extra="forbid")
    strides: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["model"] | None = "model"
    max_tiles: Annotated[int, Field(ge=1, le=4096)] | None = None
    frames: Annotated[int, Field(ge=1, le=4096)] | None = None
    exact: bool = False


class StreamOptions(BaseModel):
    """Options of a streamed reply."""

    model_config = ConfigDict(extra="allow")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = 1
    seed: int | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    vlm: Annotated[OwnFields, BeforeValidator(lambda given: OwnFields() if given is None else given)] = OwnFields()

    def check(self) -> None:
        """Raise RequestError for a field that would change the reply and is not supported."""
        for name, value in (self.model_extra or {}).items():
            if name in LABELS or (name in NEUTRAL and value in NEUTRAL[name]):
                continue
            known = name in NEUTRAL
            raise RequestError(
                f"{name} is not supported; leave it out" if known else f"unknown field {name!r}",
                param=name,
                code="unsupported_parameter" if known else "unknown_parameter",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")

    def sampling(self, default_tokens: int, number: int = 0) -> Sampling:
        """Return how the tokens of reply `number` are chosen. Without a temperature the reply is greedy."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        top_k = 50 if self.top_k is None else max(self.top_k, 0)
        return Sampling(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or default_tokens,
            min_new_tokens=self.min_tokens or 0,
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            top_k=top_k,
            seed=None if self.seed is None else self.seed + number,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            stop=tuple(stop),
        )


def head(id_: str, model: str, kind: str) -> dict[str, Any]:
    """Return the fields that every reply and piece begins with."""
    return {"id": id_, "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, completion: int, cached: int, image_tokens: int) -> dict[str, Any]:
    """Return the token counts of a request."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "image_tokens": image_tokens},
    }


def logprobs_of(tokens: Sequence[TokenChoice]) -> dict[str, Any]:
    """Return the log-probabilities of tokens in the protocol's form."""

    def one(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}

    return {
        "content": [
            {**one(t.text, t.logprob or 0.0), "top_logprobs": [one(text, p) for text, p in t.top]} for t in tokens
        ]
    }
