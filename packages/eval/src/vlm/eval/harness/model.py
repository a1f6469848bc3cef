"""Our model behind another evaluation harness: its messages in, greedy answers out, in the batches of `vlm eval`.

model = HarnessModel("pretrained/V2PE", device="cuda", dtype="bfloat16")
model.answer([([{"role": "user", "content": [image("cat.png"), text("What is it?")]}], 16)])
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from PIL import Image

from vlm.core.errors import ConfigError, DataError
from vlm.core.home import resolve
from vlm.core.sample.records import Medium, Message, Part, split_placeholders, text
from vlm.eval.backends.native import Checkpoint, NativeBackend
from vlm.eval.loaders import Item
from vlm.eval.run.batches import answers, in_batches
from vlm.eval.run.plan import Task, documents

Question = tuple[list[Message], int]
"""Messages, and how many tokens the answer may have."""

CHUNK = 512
"""Questions planned at once: enough to sort by length, few enough that their pictures fit on a disk."""


class HarnessModel:
    """A checkpoint that answers the questions of a harness, with prompts and batches as in `vlm eval`.

    Args:
        path: Checkpoint folder.
        stride: V2PE stride; "model" is the one the checkpoint was trained for, None one position per token.
        positions: "exact", or "float32" as published.
        tiles: Tile budget per image; None: the checkpoint's own.
        batch_size: Questions asked at once; changes no answer.
        device: A torch device; "auto" is CUDA where there is one.
        dtype: Precision of the weights.

    Raises:
        CheckpointError: No such checkpoint.
        ConfigError: A stride that the checkpoint cannot have.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        stride: float | str | None = "model",
        positions: str = "exact",
        tiles: int | None = None,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "float32",
    ):
        found = resolve(path)
        checkpoint = Checkpoint(found if found.exists() else path, device=device, dtype=dtype)
        rule = {"max_tiles": tiles} if tiles else None
        own = checkpoint.processor.resolve_strides(stride)
        self.backend = NativeBackend(checkpoint, stride=own, positions=positions, image_rule=rule)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self._pictures = Path(mkdtemp(prefix="vlm-harness-"))
        finalize(self, rmtree, self._pictures, True)

    def answer(self, questions: Iterable[Question]) -> list[str]:
        """Return the answers in order; questions are taken as they are needed.

        Raises:
            DataError: A question could not be answered. A harness would score any text returned in its place.
        """
        rest, replies = iter(questions), []
        while chunk := list(islice(rest, CHUNK)):
            replies += self._answer_chunk(chunk)
            for picture in self._pictures.iterdir():
                picture.unlink()
        return replies

    def _answer_chunk(self, questions: Sequence[Question]) -> list[str]:
        tasks = []
        for number, (messages, budget) in enumerate(questions):
            item = Item(str(number), messages, None, "harness")
            limits = {"max_new_tokens": budget, "min_new_tokens": 1}
            tasks.append(Task(item, str(number), self.backend.cost(messages), limits))
        order = in_batches(tasks, documents(tasks, self.backend), self.batch_size)
        outcomes = {o.key: o for _, batch in answers(self.backend, order) for o in batch}
        for outcome in outcomes.values():
            if outcome.completion is None:
                raise DataError(f"question {outcome.id}: {outcome.outcome}: {outcome.detail}", expected="an answer")
        return [outcomes[task.key].completion or "" for task in tasks]

    def store_picture(self, picture: Image.Image) -> Path:
        """Write a picture, without loss, to a file that exists until its question is answered.

        Equal pictures share a file, so that a shared document is recognized.
        """
        if not picture.mode.startswith("I"):  # 16 bits are scaled where every image is read
            picture = picture.convert("RGB")
        name = hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()
        path = self._pictures / f"{name}.png"
        if not path.exists():
            picture.save(path, compress_level=1)
        return path


def media_in_front(parts: list[Part]) -> list[Part]:
    """Arrange media as published: in front of the text, a line each, or where `<image>` marks them in the text.

    Parts in any other order stay as they are.

    Raises:
        DataError: Media without a question.
    """
    first_text = next((i for i, part in enumerate(parts) if part["type"] == "text"), len(parts))
    media = [part for part in parts[:first_text] if part["type"] != "text"]
    texts = [part["text"] for part in parts[first_text:] if part["type"] == "text"]
    if len(media) + len(texts) < len(parts):
        return parts
    words = "".join(texts)
    if media and words.count("<image>") == len(media) and all(part["type"] == "image" for part in media):
        images: Iterator[Medium] = iter(media)
        return split_placeholders(words, images, "<image>")
    if not words.strip():
        raise DataError("a question without words", expected="some text beside the media")
    if not media:
        return [text(words)]
    lines: list[Part] = [piece for medium in media for piece in (medium, text("\n"))]
    return [*lines[:-1], text("\n" + words)]


def new_token_limit(settings: dict[str, Any], default: int) -> int:
    """Return the number of new tokens that the settings of a harness allow.

    Raises:
        ConfigError: Sampling or beams. `vlm eval` decodes greedily, and answers compared with its own must too.
    """
    if settings.get("do_sample", True) and float(settings.get("temperature") or 0) > 0:
        raise ConfigError(f"temperature {settings['temperature']}", expected="greedy decoding: temperature 0")
    if int(settings.get("num_beams") or 1) != 1:
        raise ConfigError(f"{settings['num_beams']} beams", expected="greedy decoding: 1")
    return int(settings.get("max_new_tokens") or default)
