"""Talk to a model: text, images, videos, several rounds, streaming, batches.

>>> chat = ChatSession("runs/quickstart/train/quickstart-convllava-stage3/model")    # doctest: +SKIP
>>> chat.ask("What is in the picture?", images=["cat.png"])                          # doctest: +SKIP
'A cat.'
>>> for piece in chat.stream("And what color is it?"):                               # doctest: +SKIP
...     print(piece, end="")
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from vlm.core.errors import ConfigError, HardwareError
from vlm.core.sample.chat import Template
from vlm.core.sample.encode import combined_part
from vlm.core.sample.encoded import Encoded
from vlm.core.sample.records import Message, Part, VideoPart, image, text, video
from vlm.models.answers import answer, encode_unique, left_padded, reply
from vlm.models.batch import upload
from vlm.models.checkpoint.load import load_model
from vlm.models.processor import FRAMES, FROM_MODEL, Processor, load_processor

Files = Sequence[str | Path]


Videos = Sequence[str | Path | VideoPart]
"""Files, or parts of videos: `video(path, clip=(10, 25))`."""


def user_turn(question: str, images: Files, videos: Videos, template: Template, *, combine: bool = False) -> Message:
    r"""Return a question with its media in front, as published; `<image>` in the question is plain text.

    - one image: `<image>\n`
    - several, separate: `Image-1: <image>\nImage-2: <image>\n` (InternVL), `<image>\n<image>\n` (LLaVA)
    - several, combined: `<image>\n`, one placeholder with the tiles of all (InternVL)
    - a video: `Frame1: <image>\nFrame2: <image>\n...`

    Raises:
        ConfigError: no question, or images combined for a family that has no such prompt.
    """
    if not question.strip():
        raise ConfigError("the question is empty", expected="some text")
    images = [images] if isinstance(images, str | Path) else images
    videos = [videos] if isinstance(videos, str | Path | dict) else videos
    pictures = [Path(f).resolve() for f in images]
    movies = [video(v) if isinstance(v, str | Path) else v for v in videos]
    content: list[Part] = []
    if combine and len(pictures) > 1:
        if template.images_first:
            raise ConfigError(
                f"images cannot be combined with the template {template.name}",
                expected="one placeholder for each image",
                fix="ask with separate images",
            )
        content += [combined_part(pictures), text("\n")]
    else:
        named = len(pictures) > 1 and not template.images_first
        for number, path in enumerate(pictures, 1):
            content += [*([text(f"Image-{number}: ")] if named else []), image(path), text("\n")]
    for movie in movies:
        content += [video(Path(movie["path"]).resolve(), movie["clip"]), text("\n")]
    return {"role": "user", "content": [*content, text(question)]}


SINGLE_PICTURE = ("internvl-chat-v1-2", "convllava")
"""Families whose published models were trained on conversations about one picture (for V1-2 the authors warn of it)."""


class ChatSession:
    """A conversation with one model. `history` holds the finished turns; `reset()` empties it.

    >>> chat = ChatSession("pretrained/InternVL2-2B", device="cuda", dtype="bfloat16")      # doctest: +SKIP
    >>> chat.ask("What is in the picture?", images=["cat.png"], max_new_tokens=32)          # doctest: +SKIP
    'A cat.'

    Args:
        path: a checkpoint, see `load_model`.
        strides: V2PE positions per tile, None for plain counting; by default those that the model was trained for. A
            Fraction is the increment of a token.
        system: replaces the system text.
        combine: several images of a question share one placeholder.
        max_tiles: tiles per image, see `load_processor`.
        frames: frames per video, see `load_processor`.
        image_rule: another image rule than the checkpoint's, see `load_processor`.
        placement: `device`, `dtype`, `quantize`, `offload`, `kv_dtype`, `kv_offload` and `progress` of `load_model`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        strides: float | Fraction | str | None = FROM_MODEL,
        system: str | None = None,
        combine: bool = False,
        max_tiles: int | None = None,
        frames: int = FRAMES,
        image_rule: str | None = None,
        **placement: Any,
    ):
        self.processor = load_processor(path, max_tiles=max_tiles, frames=frames, image_rule=image_rule)
        if isinstance(strides, Fraction):
            strides = float(strides * self.processor.tokens_per_tile)
        self.processor.resolve_strides(strides)  # report a fault before gigabytes are read
        self.strides, self.combine, self.frames = strides, combine, frames
        self.start: list[Message] = [{"role": "system", "content": [text(system)]}] if system is not None else []
        self.history: list[Message] = list(self.start)
        self._answering: Generator[str, None, None] | None = None
        self.model = load_model(path, infer=True, **placement)

    def reset(self) -> None:
        """Forget the conversation; an answer in progress stops."""
        self._stop_answering()
        self.history = list(self.start)

    def messages(self, question: str, images: Files = (), videos: Videos = ()) -> list[Message]:
        """Return the history and one more user turn (see `user_turn`)."""
        turn = user_turn(question, images, videos, self.processor.template, combine=self.combine)
        return [*self.history, turn]

    def untrained(self, images: Files = (), videos: Videos = ()) -> str | None:
        """Return a warning where the model's family was not trained on as many pictures, or videos; None if it was.

        The pictures and videos of the history count: the model sees them again.
        """
        if self.processor.family not in SINGLE_PICTURE:
            return None
        media = [part["type"] for message in self.history for part in message["content"] if part["type"] != "text"]
        pictures, movies = media.count("image") + len(images), media.count("video") + len(videos)
        if pictures + movies < 2 and not movies:
            return None
        seen = [
            f"{n} {word}" for n, word in ((pictures, "pictures"), (movies, "videos" if movies > 1 else "video")) if n
        ]
        return (
            f"{' and '.join(seen)}, but the published models of the family {self.processor.family} were trained on one "
            "picture in a conversation: expect poor answers"
        )

    def ask(self, question: str, *, images: Files = (), videos: Videos = (), **settings: Any) -> str:
        """Return the complete answer, and add the turn to the history. Keywords are those of `generate`."""
        return "".join(self.stream(question, images=images, videos=videos, **settings))

    def ask_batch(
        self,
        questions: Sequence[str],
        *,
        images: Sequence[Files] = (),
        videos: Sequence[Videos] = (),
        max_new_tokens: int = 256,
        **settings: Any,
    ) -> list[str]:
        """Answer independent questions, each with its own images and videos, in one batch.

        The history is neither read nor changed.

        Raises:
            ConfigError: lists of unequal length, or an empty question.
        """
        for name, count in (("images", len(images)), ("videos", len(videos))):
            if count not in (0, len(questions)):
                raise ConfigError(f"{name} for {count} of {len(questions)} questions", expected="a list for each")
        batch = []
        for i, question in enumerate(questions):
            pictures, movies = images[i] if images else (), videos[i] if videos else ()
            turn = user_turn(question, pictures, movies, self.processor.template, combine=self.combine)
            batch.append(self.processor.encode([*self.start, turn], strides=self.strides, id=f"question {i + 1}"))
        if not batch:
            return []
        replies = answer(self.model, self.processor, batch, max_new_tokens=max_new_tokens, **settings)
        return [r.text for r in replies]

    def stream(
        self,
        question: str,
        *,
        images: Files = (),
        videos: Videos = (),
        max_new_tokens: int = 256,
        **settings: Any,
    ) -> Iterator[str]:
        """Yield pieces of the answer as they are generated (with beams: all of it at the end).

        The turn is added to the history when the answer is complete. An answer that is not read to its end stops, also
        if a new question is asked meanwhile, and is not added.

        Raises:
            VlmError: at once for bad input; while the pieces are read for a failure of generation.
        """
        messages = self.messages(question, images, videos)
        encoded = self.processor.encode(messages, strides=self.strides)
        self._stop_answering()
        self._answering = self._pieces(messages, encoded, {"max_new_tokens": max_new_tokens, **settings})
        return self._answering

    def _stop_answering(self) -> None:
        if self._answering is not None:
            self._answering.close()

    def _pieces(
        self, messages: list[Message], encoded: Encoded, settings: dict[str, Any]
    ) -> Generator[str, None, None]:
        streamer = PieceStreamer(self.processor)
        with ThreadPoolExecutor(1, "answer") as pool:  # waits for the thread at the end
            made = pool.submit(self._generate, encoded, streamer, settings)
            made.add_done_callback(lambda _: streamer.queue.put(None))
            whole = ""
            try:
                for piece in streamer:
                    whole += piece
                    yield piece
                made.result()  # raises here an error of the thread
            finally:
                streamer.stopped = True
        self.history = [*messages, {"role": "assistant", "content": [text(whole.strip())]}]

    @torch.inference_mode()
    def _generate(self, encoded: Encoded, streamer: "PieceStreamer", settings: dict[str, Any]) -> None:
        """Fill the streamer; runs in a separate thread."""
        try:
            if (settings.get("num_beams") or 1) > 1:  # the best beam is only known at the end
                streamer.show(answer(self.model, self.processor, [encoded], **settings)[0].text)
                return
            device = next(self.model.parameters()).device
            features = encode_unique(self.model, self.processor, [encoded], chunk=16)
            ids, mask, positions = (upload(t, device) for t in left_padded([encoded]))
            self.model.generate(
                ids,
                features=features,
                attention_mask=mask,
                position_ids=positions,
                eos_token_id=streamer.stop,
                pad_token_id=streamer.stop[0],
                streamer=streamer,
                **settings,
            )
        except torch.OutOfMemoryError as error:
            raise HardwareError(
                f"out of memory with a prompt of {len(encoded):,} tokens and {encoded.n_tiles} tiles",
                fix="use fewer tiles (max_tiles) or frames, bfloat16, 8bit, or device `map`",
            ) from error


class PieceStreamer:
    """A streamer for transformers: takes token ids, yields decoded pieces of complete characters."""

    def __init__(self, processor: Processor):
        self.processor, self.stop = processor, processor.stop_ids
        self.ids: list[int] = []
        self.shown = ""
        self.queue: SimpleQueue[str | None] = SimpleQueue()
        self.stopped = False

    def put(self, value: torch.Tensor) -> None:
        """Take new ids from `generate`. Raises CancelledError there if the answer is no longer read."""
        if self.stopped:
            raise CancelledError
        self.ids += value.flatten().tolist()
        whole = reply(self.processor, self.ids, self.stop).text
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # the first bytes of a character
            self.show(whole)

    def show(self, whole: str) -> None:
        """Queue the new part of the answer so far."""
        if whole.startswith(self.shown) and whole != self.shown:
            self.queue.put(whole[len(self.shown) :])
            self.shown = whole

    def end(self) -> None:
        """Finish the answer (called by `generate`)."""
        self.show(reply(self.processor, self.ids, self.stop).text)
        self.queue.put(None)

    def __iter__(self) -> Iterator[str]:
        while (piece := self.queue.get()) is not None:
            yield piece
