"""A model that is served: engine and processor, and one reply after the other from a request."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from PIL import Image

from vlm.cli.server.incoming import Media, read_messages
from vlm.cli.server.protocol import ChatRequest, RequestError
from vlm.cli.server.uploads import Uploads
from vlm.core.errors import ConfigError, VlmError
from vlm.core.sample.encoded import Encoded
from vlm.core.sample.media import image_size
from vlm.core.sample.records import ImagePart, Message, Sample
from vlm.models.engine import Busy, ChatEngine, ContextOverflow, Event, GenerationRequest, Sampling
from vlm.models.processor import Processor

MOST_TILES = 256
"""Tiles of an image that a request may ask for; of a whole image the tokens may be more (`vlm.max_tiles`)."""


@dataclass(frozen=True)
class Settings:
    """Limits of the server. Times in seconds, sizes in bytes.

    `hosts`: from which media may be fetched. `names`: of this server, as its clients call it; None for any.
    `max_bodies`: of all requests that are there. `max_uploads`: files that are kept for later requests.
    """

    hosts: frozenset[str] = frozenset()
    names: frozenset[str] | None = None
    max_file: int = 64 << 20
    max_body: int = 256 << 20
    max_bodies: int = 1 << 30
    max_uploads: int = 1 << 30
    max_images: int = 1000
    max_tokens: int = 1024
    seconds: float = 600.0
    api_key: str | None = None


@dataclass(frozen=True)
class Prompt:
    """An encoded request, and how each of its images is cut: size, grid of tiles (columns, rows), thumbnail.

    `frames` is the number of frames that were taken from each of its videos; 0 without a video.
    """

    encoded: Encoded
    images: list[dict[str, Any]]
    frames: int


class ServedModel:
    """A model under a name; `prepare` makes prompts, `replies` streams the events of one."""

    def __init__(self, name: str, engine: ChatEngine, processor: Processor, settings: Settings):
        self.name, self.engine, self.processor, self.settings = name, engine, processor, settings
        self.uploads = Uploads(settings.max_uploads)
        self.created = int(time.time())
        self.encoders = CapacityLimiter(2)

    def card(self) -> dict[str, object]:
        """Return the entry of /v1/models."""
        spec, rule = self.processor.spec, self.processor.spec.image_rule
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "vlm",
            "vlm": {
                "family": spec.family,
                "strides": spec.strides,
                "tokens_per_tile": self.processor.tokens_per_tile,
                "image_rule": rule.model_dump(mode="json"),
                "frames": self.processor.frames,
                "max_positions": spec.language.max_positions,
                "max_context": self.engine.limits.context,
                "exact": True,
            },
        }

    async def prepare(self, request: ChatRequest) -> Prompt:
        """Return the prompt of a request, checked against the context limit.

        Raises:
            RequestError: anything in it that cannot be used.
        """
        folder = Path(tempfile.mkdtemp(dir=self.uploads.folder))
        try:
            return await to_thread.run_sync(self._prepare, request, folder, limiter=self.encoders)
        except ContextOverflow as error:
            raise RequestError(str(error), code="context_length_exceeded", param="messages") from error
        except VlmError as error:
            found = str(error).replace(f"{folder}/", "")
            raise RequestError(
                found, code="invalid_media" if "media" in type(error).__name__.lower() else None
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _prepare(self, request: ChatRequest, folder: Path) -> Prompt:
        settings = self.settings
        files = Media(folder, self.uploads, settings.hosts, settings.max_file, settings.max_images)
        processor = self.processor
        messages = read_messages(request.messages, files, processor.template, exact=request.vlm.exact)
        if request.vlm.max_tiles is not None:
            if not processor.spec.image_rule.limited:
                raise ConfigError(f"vlm.max_tiles {request.vlm.max_tiles}, but this model makes one square of an image")
            if processor.spec.image_rule.kind == "tiles" and request.vlm.max_tiles > MOST_TILES:
                raise ConfigError(f"vlm.max_tiles {request.vlm.max_tiles}", expected=f"at most {MOST_TILES}")
            processor = processor.with_image_rule(max_tiles=request.vlm.max_tiles)
        if request.vlm.frames is not None:
            processor = processor.with_frames(request.vlm.frames)
        sampling = request.sampling(settings.max_tokens)
        if any(part["type"] != "text" for m in messages for part in m["content"]):
            self.engine.check(counted(processor, messages), sampling)  # nothing is decoded in vain
        prompt = processor.encode(messages, strides=request.vlm.strides)
        self.engine.check(prompt, sampling)
        media = [part for m in messages for part in m["content"] if part["type"] != "text"]
        videos = any(part["type"] == "video" for part in media)
        cuts = [cut_of(part, processor) for part in media if part["type"] == "image"]
        return Prompt(prompt, cuts, processor.frames if videos else 0)

    def start(self, prompt: Encoded, request: ChatRequest, number: int) -> "ServedReply":
        """Queue one reply. Raises RequestError if the queue is full."""
        made = ServedReply(prompt, request.sampling(self.settings.max_tokens, number), self)
        try:
            self.engine.submit(made.request)
        except Busy as error:
            raise RequestError(str(error), status=429, code="queue_full", wait=2) from error
        return made


class ServedReply:
    """A reply in the making; its events are read in the loop that has started it."""

    def __init__(self, prompt: Encoded, sampling: Sampling, model: ServedModel):
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self.model, seconds = model, model.settings.seconds

        def take(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self.request = GenerationRequest(prompt, sampling, take, time.monotonic() + seconds)

    def cancel(self) -> None:
        """Make room for others; nothing happens to a reply that is complete."""
        self.model.engine.cancel(self.request)

    async def events(self) -> AsyncGenerator[Event]:
        """Yield the events.

        Raises:
            RequestError: the reply failed, or did not begin in time.
        """
        while True:
            event = await self._events.get()
            if event.ended == "error":
                raise RequestError(event.error, status=500, code="generation_failed")
            if event.ended == "timeout" and not self.request.new_tokens:
                seconds = self.model.settings.seconds
                raise RequestError(f"no reply within {seconds:g} seconds", status=503, code="timeout", wait=10)
            yield event
            if event.ended:
                return


def counted(processor: Processor, messages: list[Message]) -> Encoded:
    """Return a prompt without pixels: sizes come from the headers of images, and a frame is one tile.

    Raises:
        VlmError: the header of an image cannot be read.
    """
    encoder = copy(processor.encoder)
    if encoder.image_rule.kind != "whole":  # of whole images the size of a frame counts
        encoder.load_frames = lambda path, segments, clip=None: [Image.new("RGB", (1, 1))] * segments
    return encoder.encode(Sample("prompt", messages, "prompt"), generation_prompt=True, pixels=False)


def cut_of(part: ImagePart, processor: Processor) -> dict[str, Any]:
    """Return how an image is cut into tiles."""
    width, height = image_size(part["path"])
    plan = processor.spec.image_rule.plan(width, height)
    return {"size": [width, height], "grid": list(plan.grid), "thumbnail": plan.thumbnail, "tiles": plan.n_tiles}
