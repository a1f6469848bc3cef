"""Talk to a model: text, images, videos, several rounds, streaming.

>>> chat = ChatSession("runs/quickstart/train/convllava-stage3/model")
>>> chat.ask("What is in the picture?", images=["cat.png"])
'a cat'
>>> for piece in chat.stream("And what colour is it?"):
...     print(piece, end="")
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vlm.core.errors import ConfigError
from vlm.core.records import Message, image, text, video
from vlm.models.generate import encode_unique, left_padded, reply
from vlm.models.processor import FROM_MODEL, Processor, load_processor
from vlm.models.weights import load_model


class ChatSession:
    """A conversation with one model. `history` holds the messages so far; `reset()` empties it."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        strides: float | str | None = FROM_MODEL,
        system: str | None = None,
    ):
        self.model, self.processor = load_model(path, device, dtype), load_processor(path)
        self.strides = strides
        self.start: list[Message] = [{"role": "system", "content": [text(system)]}] if system is not None else []
        self.history: list[Message] = list(self.start)

    def reset(self) -> None:
        """Forget the conversation."""
        self.history = list(self.start)

    def messages(self, question: str, images: list[str | Path] = (), videos: list[str | Path] = ()) -> list[Message]:  # type: ignore[assignment]
        """The history and one more user turn: media first, each followed by a newline, then the question as text.

        A question that contains `<image>` or a special token stays text.
        """
        if not question.strip():
            raise ConfigError("the question is empty", expected="some text")
        parts: list[dict[str, Any]] = []
        for part in [image(Path(i).resolve()) for i in images] + [video(Path(v).resolve()) for v in videos]:
            parts += [part, text("\n")]
        return [*self.history, {"role": "user", "content": [*parts, text(question)]}]

    def ask(self, question: str, *, images: list[str | Path] = (), videos: list[str | Path] = (), **kwargs: Any) -> str:  # type: ignore[assignment]
        """The whole answer; the turn is added to the history. Keywords go to `generate`."""
        return "".join(self.stream(question, images=images, videos=videos, **kwargs))

    def stream(
        self,
        question: str,
        *,
        images: list[str | Path] = (),  # type: ignore[assignment]
        videos: list[str | Path] = (),  # type: ignore[assignment]
        max_new_tokens: int = 256,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Pieces of the answer as they are made. The turn is added to the history when the answer is complete."""
        messages = self.messages(question, images, videos)
        encoded = self.processor.encode(messages, strides=self.strides)
        streamer = PieceStreamer(self.processor)
        device = next(self.model.parameters()).device

        def work() -> None:
            try:
                with torch.inference_mode():
                    features = encode_unique(self.model, self.processor, [encoded], chunk=16)
                    ids, mask, positions = (t.to(device) for t in left_padded([encoded]))
                    self.model.generate(
                        ids,
                        features=features,
                        attention_mask=mask,
                        position_ids=positions,
                        max_new_tokens=max_new_tokens,
                        eos_token_id=streamer.stop,
                        pad_token_id=streamer.stop[0],
                        streamer=streamer,
                        **kwargs,
                    )
            except BaseException as error:  # noqa: BLE001  handed to the reading thread, which raises it
                streamer.fail(error)
            else:
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        answer = ""
        for piece in streamer:
            answer += piece
            yield piece
        thread.join()
        self.history = [*messages, {"role": "assistant", "content": [text(answer.strip())]}]


class PieceStreamer:
    """transformers' streamer protocol: token ids in, decoded pieces out, whole characters only."""

    def __init__(self, processor: Processor):
        from queue import SimpleQueue

        self.processor, self.stop = processor, processor.stop_ids
        self.ids: list[int] = []
        self.shown = ""
        self.queue: SimpleQueue[str | BaseException | None] = SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        """New ids from `generate`."""
        self.ids += value.flatten().tolist()
        whole = reply(self.processor, self.ids, self.stop).text
        if not whole.endswith("�"):  # the first bytes of a character
            self.show(whole)

    def show(self, whole: str) -> None:
        """Queue what is new in the answer so far."""
        if whole.startswith(self.shown) and whole != self.shown:
            self.queue.put(whole[len(self.shown) :])
            self.shown = whole

    def end(self) -> None:
        """The answer is complete (also called by `generate`)."""
        self.show(reply(self.processor, self.ids, self.stop).text)
        self.queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Hand an error to the reader."""
        self.queue.put(error)

    def __iter__(self) -> Iterator[str]:
        while (piece := self.queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
